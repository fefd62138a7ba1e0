"""Back ends: which there are, what one has to offer, and which of them decodes for a model.

A back end is a module with `why_not`, `means` and `begin`, listed in `BACKENDS`:

- `reference`: PyTorch, on every device and in every dtype; the others must equal it.
- `cpu`: C++, in float32 on a CPU.
- `cuda`: Triton kernels in CUDA graphs, in float32 or bfloat16 on a GPU.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from autogaze.decoding.choice import Slots
from autogaze.decoding.request import Request
from autogaze.network.network import GazeNetwork

BACKENDS = {  # name: module, imported when it is asked, since some need packages that not everyone has
    "reference": "autogaze.decoding.reference",
    "cpu": "autogaze.decoding.cpu.backend",
    "cuda": "autogaze.decoding.cuda.backend",
}
OLD_NAMES = {"plain": "reference", "cached": "reference", "native": "cpu", "fused": "cuda"}
VARIABLE = "AUTOGAZE_DECODING"
FRAMES_AT_ONCE = 16  # most frames that a decoding is given at once: this bounds memory on long clips


class Decoding(Protocol):
    """State of a batch of clips that are decoded stretch by stretch."""

    def decode(self, video: Tensor, request: Request) -> Slots:
        """Encode the next T frames and choose their ids.

        Args:
            video: (B, T, 3, H, W) float, preprocessed, on any device; T <= FRAMES_AT_ONCE.
            request: of these frames, (B, T).

        Returns:
            ids (B, T, K) int64, chosen (B, T, K) bool, predicted loss before each id (B, T, K) float32, NaN in slots
            that were not decoded.
        """
        ...


def chosen_backend(model: GazeNetwork) -> tuple[str, str]:
    """The back end that decodes for a model, and why, or how; for `autogaze info`."""
    name, reason = pick_backend(model)
    means: Callable[[GazeNetwork], str] = importlib.import_module(BACKENDS[name]).means
    return name, reason or means(model)


def pick_backend(model: GazeNetwork) -> tuple[str, str]:
    """The back end that decodes for a model, and why it is the reference where nobody asked for that.

    `model.decoding` says which; where it is "auto" the environment variable AUTOGAZE_DECODING does, and where
    that is "auto" or not set, the fastest that the device and the dtype allow is taken.

    Raises:
        ValueError: if a back end is asked for that does not exist or cannot be used.
    """
    asked = current_name(model.decoding if model.decoding != "auto" else os.environ.get(VARIABLE) or "auto")
    if asked not in ("auto", *BACKENDS):
        raise ValueError(f"decoding must be auto or one of {', '.join(BACKENDS)}, got {asked!r}")
    name = asked if asked != "auto" else "cpu" if model.device.type == "cpu" else "cuda"
    why_not: Callable[[GazeNetwork, bool], str] = importlib.import_module(BACKENDS[name]).why_not
    reason = why_not(model, asked == name)
    if not reason:
        return name, ""
    if asked == "auto":
        return "reference", reason
    raise ValueError(f'decoding="{name}" cannot be used: {reason}')


def current_name(name: str) -> str:
    """The name of a back end that may be given by one of version 0.1."""
    if name not in OLD_NAMES:
        return name
    message = f'decoding="{name}" is now "{OLD_NAMES[name]}"; the old name goes in version 0.3'
    warnings.warn(message, DeprecationWarning, stacklevel=4)
    return OLD_NAMES[name]


def begin(model: GazeNetwork, request: Request, frames: int, stream: bool = False) -> Decoding:
    """A decoding that never spends more than `request`, of `frames` frames in all, or of a stream, which has any number
    of them and comes frame by frame with the same request."""
    name, _ = pick_backend(model)
    start: Callable[[GazeNetwork, Request, int, bool], Decoding] = importlib.import_module(BACKENDS[name]).begin
    return start(model, request, frames, stream)
