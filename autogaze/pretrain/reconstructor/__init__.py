"""The reconstructor, whose loss judges a gaze, and what it is trained on."""

from autogaze.pretrain.reconstructor.network import Reconstructor, ReconstructorConfig

__all__ = ["Reconstructor", "ReconstructorConfig"]
