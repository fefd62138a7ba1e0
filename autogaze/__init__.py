"""autogaze: learn where to look in a video before a ViT does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autogaze import moved
from autogaze.core.gaze import Gaze
from autogaze.core.grid import PatchGrid
from autogaze.decoding.stream import GazeStream
from autogaze.model import AutoGaze

if TYPE_CHECKING:
    from autogaze.vit import GazedViT

    __version__: str

__all__ = ["AutoGaze", "Gaze", "GazeStream", "GazedViT", "PatchGrid", "__version__"]


moved.install()


def __getattr__(name: str) -> object:
    """Import what pulls in more than the model only when it is asked for."""
    if name == "GazedViT":
        from autogaze.vit import GazedViT

        return GazedViT
    if name == "__version__":
        from importlib.metadata import version

        return version("autogaze")
    raise AttributeError(f"module 'autogaze' has no attribute {name!r}")
