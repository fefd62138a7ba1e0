"""autogaze: learn where to look in a video before a ViT does."""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING

from autogaze import moved

if TYPE_CHECKING:
    from autogaze.core.gaze import Gaze
    from autogaze.core.grid import PatchGrid
    from autogaze.decoding.stream import GazeStream
    from autogaze.model import AutoGaze
    from autogaze.vit import GazedViT

    __version__: str

__all__ = ["AutoGaze", "Gaze", "GazeStream", "GazedViT", "PatchGrid", "__version__"]

HOMES = {  # imported when asked for, so that `autogaze --help` does not wait for torch
    "AutoGaze": "autogaze.model",
    "Gaze": "autogaze.core.gaze",
    "GazeStream": "autogaze.decoding.stream",
    "GazedViT": "autogaze.vit",
    "PatchGrid": "autogaze.core.grid",
}

moved.install()


def __getattr__(name: str) -> object:
    if name in HOMES:
        globals()[name] = getattr(importlib.import_module(HOMES[name]), name)
        return globals()[name]
    if name == "__version__":
        return version("autogaze")
    if not name.startswith("_"):  # a module, as in `autogaze.model.AutoGazeConfig`
        try:
            return importlib.import_module(f"autogaze.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"autogaze.{name}":
                raise
    raise AttributeError(f"module 'autogaze' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
