"""Which way of decoding runs: the fastest that the device, the dtype and the caller allow."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from autogaze.decoding.cached import CachedDecoding
from autogaze.decoding.choice import Column
from autogaze.decoding.plain import PlainDecoding
from autogaze.decoding.request import Request

if TYPE_CHECKING:
    from autogaze.model import AutoGaze

WAYS = ("auto", "fused", "cached", "plain")


class Decoding(Protocol):
    """State of a batch of clips that are decoded frame by frame."""

    def step(self, visual: Tensor, request: Request) -> Column:
        """Ids (B, K) int64, chosen (B, K) bool and predicted losses (B, K) of the next frame."""
        ...


def chosen_way(model: AutoGaze) -> tuple[str, str]:
    """The way that decoding will take, and the reason, for `autogaze info`.

    `AUTOGAZE_DECODING` overrides `model.decoding`; either may be one of "auto", "fused", "cached", "plain".
    """
    asked = os.environ.get("AUTOGAZE_DECODING") or model.decoding
    if asked not in WAYS:
        raise ValueError(f"decoding must be one of {', '.join(WAYS)}, got {asked!r}")
    if asked in ("plain", "cached"):
        return asked, "asked for"
    from autogaze.decoding.fused import why_not

    reason = why_not(model)
    if reason and asked == "fused":
        raise ValueError(f"the fused kernels cannot be used: {reason}")
    return ("cached", reason) if reason else ("fused", "CUDA graphs over Triton kernels")


def begin(model: AutoGaze, request: Request, frames: int) -> Decoding:
    """A decoding for `frames` frames to come (a stream: `max_num_frames`) that never spends more than `request`."""
    batch, budget = len(request.budget), int(request.budget.max()) if request.budget.numel() else 0
    window = model.config.max_num_frames
    way, _ = chosen_way(model)
    if way == "fused":
        from autogaze.decoding.fused import FusedDecoding

        return FusedDecoding(model, batch, min(window, frames), budget)
    if way == "plain":
        return PlainDecoding(model.gaze_decoder, batch, window)
    return CachedDecoding(model.gaze_decoder, batch, min(window, frames), model.visual_tokens, budget, request.uniform)
