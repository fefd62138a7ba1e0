"""The gaze: ids of patches, the grid that they lie on, and the file that they are kept in."""
