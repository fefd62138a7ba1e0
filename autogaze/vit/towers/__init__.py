"""Towers: views of ViTs of timm and transformers in parts, so that only chosen patches pass through them."""
