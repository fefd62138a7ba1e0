"""In front of a ViT: encode only the patches that a gaze chose.

tokens = GazedViT(timm_or_hf_model)(video, gaze)   # packed features with their places
tokens.pool(), tokens.dense()
"""

from autogaze.vit.features import PackedFeatures
from autogaze.vit.gazed import GazedViT
from autogaze.vit.graphs import GraphedViT
from autogaze.vit.stream import ViTStream

__all__ = ["GazedViT", "GraphedViT", "PackedFeatures", "ViTStream"]
