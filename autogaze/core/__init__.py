"""What a gaze is: ids of patches, the grid they lie on, and the file they are kept in."""
