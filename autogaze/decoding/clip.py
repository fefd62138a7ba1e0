"""Whole clips: encode chunk by chunk, decode frame by frame."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from autogaze.decoding.choice import pad_columns
from autogaze.decoding.engine import begin
from autogaze.decoding.request import Request
from autogaze.gaze import Gaze

if TYPE_CHECKING:
    from autogaze.model import AutoGaze

ENCODE_FRAMES = 16  # frames encoded at once: bounds memory on long clips


def decode_clip(model: AutoGaze, video: Tensor, request: Request) -> Gaze:
    """Choose patches in every frame of a batch of clips; see `AutoGaze.generate`."""
    frames = video.shape[1]
    if request.requirement is not None:
        request = replace(request, requirement=model.config.threshold(request.requirement))
    engine = begin(model, request, frames)
    cache, columns = None, []
    for start in range(0, frames, ENCODE_FRAMES):
        visual, cache = model.embed(video[:, start : start + ENCODE_FRAMES].to(model.device), cache)
        for t in range(visual.shape[1]):
            columns.append(engine.step(visual[:, t], request.frames(start + t, start + t + 1)))
    return join_frames(columns, model)


def join_frames(columns: list[tuple[Tensor, Tensor, Tensor]], model: AutoGaze) -> Gaze:
    """One gaze of the frames' ids, chosen and predicted losses, padded to the longest frame."""
    ids, chosen, loss = pad_columns(columns, partial(torch.stack, dim=1))
    return Gaze(ids.where(chosen, 0), chosen, model.grid, loss)
