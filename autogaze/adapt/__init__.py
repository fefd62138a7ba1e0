"""Adapting a ViT to gazed patches, without labels: the dense ViT teaches the same ViT with a few patches a frame."""
