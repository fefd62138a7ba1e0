"""Videos, photos and cameras: reading, writing, preprocessing, rendered scenes."""
