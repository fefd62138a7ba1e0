"""From a folder of videos and photos to batches of clips."""
