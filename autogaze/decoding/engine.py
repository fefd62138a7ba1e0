"""Which way of decoding runs: the fastest that the device, the dtype and the caller allow."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from autogaze.decoding import native_pass
from autogaze.decoding.cached import CachedDecoding
from autogaze.decoding.choice import Column, pad_columns
from autogaze.decoding.native_error import NativeResidualMap, residual_map
from autogaze.decoding.plain import PlainDecoding
from autogaze.decoding.request import Request
from autogaze.network.encoder import FrameTokens
from autogaze.network.residual import ResidualMap

if TYPE_CHECKING:
    from autogaze.model import AutoGaze

WAYS = ("auto", "fused", "cached", "plain", "native")
NAMES = {"fused": "fused kernels", "native": "native library"}


class Decoding(Protocol):
    """State of a batch of clips that are decoded frame by frame."""

    def frames(self, tokens: FrameTokens, request: Request) -> Column:
        """Choose the ids of the next T frames.

        Args:
            tokens: of these frames.
            request: of these frames, (B, T).

        Returns:
            ids (B, T, K) int64, chosen (B, T, K) bool, predicted loss before each id (B, T, K) float32, NaN in slots
            that were not decoded.
        """
        ...


class FrameByFrame:
    """A way that knows one frame at a time, as a `Decoding`; and around it, in models with
    `residual_map`, the picture that is known of each clip."""

    def __init__(self, way: PlainDecoding | CachedDecoding, model: AutoGaze, native: bool = False) -> None:
        self.way = way
        self.residual_map: ResidualMap | NativeResidualMap | None = model.residual_map
        if native and model.residual_map is not None:
            self.residual_map = residual_map(model.residual_map, model.grid)
        self.canvas: Tensor | None = None

    def frames(self, tokens: FrameTokens, request: Request) -> Column:
        columns = [self._frame(tokens.frame(t), request.frames(t, t + 1)) for t in range(tokens.visual.shape[1])]
        return pad_columns(columns, partial(torch.stack, dim=1))

    def _frame(self, tokens: FrameTokens, request: Request) -> Column:
        rule, grey = self.residual_map, tokens.grey
        if rule is None or grey is None:
            return self.way.step(tokens.visual, request)
        canvas = rule.open(grey) if self.canvas is None else self.canvas
        column = self.way.step(tokens.visual, request, rule.begin(grey, canvas))
        self.canvas = rule.look(canvas, grey, column[0], column[1])
        return column


def chosen_way(model: AutoGaze) -> tuple[str, str]:
    """The way that decoding will take, and the reason, for `autogaze info`.

    `AUTOGAZE_DECODING` overrides `model.decoding`; either may be one of "auto", "fused", "cached", "plain",
    "native".
    """
    way, reason = pick_way(model)
    if reason:
        return way, reason
    if way == "fused":
        from autogaze.decoding import fused

        return way, fused.means(model)
    return way, "C++ compiled for this processor"


def pick_way(model: AutoGaze) -> tuple[str, str]:
    """The way that decoding will take, and why it is none of the fast ones.

    Raises:
        ValueError: if a way is asked for that does not exist or cannot be used.
    """
    asked = os.environ.get("AUTOGAZE_DECODING") or model.decoding
    if asked not in WAYS:
        raise ValueError(f"decoding must be one of {', '.join(WAYS)}, got {asked!r}")
    if asked in ("plain", "cached"):
        return asked, "asked for"
    way = asked if asked != "auto" else "native" if model.device.type == "cpu" else "fused"
    reason = why_not(model, way, asked == way)
    if not reason:
        return way, ""
    if asked == "auto":
        return "cached", reason
    raise ValueError(f"the {NAMES[way]} cannot be used: {reason}")


def why_not(model: AutoGaze, way: str, asked: bool) -> str:
    """The reason why "fused" or "native" decoding cannot be used, or should not unless asked for; empty if it can."""
    if way == "native":
        return native_pass.why_not(model) if asked else native_pass.why_not_unasked(model)
    from autogaze.decoding import fused

    return fused.why_not(model)


def begin(model: AutoGaze, request: Request, frames: int) -> Decoding:
    """A decoding for `frames` frames to come (a stream: any number) that never spends more than `request`."""
    batch, budget = len(request.budget), int(request.budget.max()) if request.budget.numel() else 0
    window = model.config.max_num_frames
    way, _ = pick_way(model)
    if way == "fused":
        from autogaze.decoding.fused import FusedDecoding

        return FusedDecoding(model, request, frames)
    if way == "plain":
        return FrameByFrame(PlainDecoding(model.gaze_decoder, batch, window), model)
    cached = CachedDecoding(
        model.gaze_decoder,
        batch,
        min(window, frames),
        model.visual_tokens,
        budget,
        request.uniform,
        native=way == "native",
    )
    return FrameByFrame(cached, model, native=way == "native")
