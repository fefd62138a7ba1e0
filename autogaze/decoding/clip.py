"""Whole clips: encode chunk by chunk, decode frame by frame."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor

from autogaze.core.gaze import Gaze
from autogaze.decoding.backends import FRAMES_AT_ONCE, begin
from autogaze.decoding.choice import Slots, join_slots
from autogaze.decoding.request import Request
from autogaze.network.network import GazeNetwork

IMAGES_AT_ONCE = {"cuda": 1024, "cpu": 256}  # frames of all clips encoded at once: bounds memory on many tiles


def frames_at_once(batch: int, device: torch.device) -> int:
    """The number of frames of so many clips that are encoded at once."""
    return max(1, min(FRAMES_AT_ONCE, IMAGES_AT_ONCE.get(device.type, 256) // batch))


def decode_clip(model: GazeNetwork, video: Tensor, request: Request) -> Gaze:
    """Choose patches in every frame of a batch of clips; see `AutoGaze.generate`."""
    return decode_chunks(model, video.split(frames_at_once(len(video), model.device), dim=1), request)


@torch.no_grad()
def decode_chunks(model: GazeNetwork, chunks: Iterable[Tensor], request: Request) -> Gaze:
    """`decode_clip` of a video (B, T, 3, H, W) that comes in stretches of frames, so that it need not exist at once."""
    request = request.calibrated(model.config)
    decoding = begin(model, request, request.budget.shape[1])
    slots, start = [], 0
    for chunk in chunks:
        slots.append(decoding.decode(chunk, request.frames(start, start + chunk.shape[1])))
        start += chunk.shape[1]
    return join_frames(slots, model)


def join_frames(slots: list[Slots], model: GazeNetwork) -> Gaze:
    """One gaze of stretches of frames: ids, chosen and predicted losses, padded to the longest frame."""
    ids, chosen, loss = join_slots(slots, partial(torch.cat, dim=1))
    return Gaze(ids.where(chosen, 0), chosen, model.grid, loss)
