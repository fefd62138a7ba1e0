"""Frames of any size and number, as a camera or a file gives them: preprocessed, cut into tiles, decoded in order."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from autogaze.core.gaze import Gaze
from autogaze.core.grid import PatchGrid
from autogaze.core.tiling import Tiling, check_stride, make_tiling, tiling_onto
from autogaze.decoding.backends import Decoding, begin
from autogaze.decoding.clip import frames_at_once
from autogaze.decoding.limits import DEFAULT, Limit, choose_limits
from autogaze.decoding.request import Request
from autogaze.decoding.tiles import decode_next, request_tiles
from autogaze.media.frames import as_clip
from autogaze.media.source import open_source, to_device
from autogaze.media.video import FRAMES_AT_ONCE
from autogaze.network.network import GazeNetwork

ENDLESS = 1 << 31  # frames of a video whose length is not known
VideoSource = str | os.PathLike[str] | int | Any  # a file, an address, a camera, or frames in any form


def in_chunks(source: VideoSource, at_once: int = FRAMES_AT_ONCE) -> Iterator[Tensor]:
    """Frames (t, H, W, 3) uint8, t <= at_once, of a video file or of frames in any form that people hold them in.

    Raises:
        ValueError: see `autogaze.media.frames.as_frames`.
    """
    if at_once < 1:
        raise ValueError(f"at_once must be at least 1 frame, got {at_once}")
    if isinstance(source, int | str | os.PathLike):
        for chunk in open_source(source).chunks():
            yield from as_clip(chunk.frames).split(at_once)
    elif isinstance(source, Iterator):
        first = 0
        while part := list(islice(source, at_once)):
            yield as_clip(part, first)
            first += len(part)
    else:
        yield from as_clip(source).split(at_once)


class FrameGazer:
    """Looks at frames of any size, in order, a few at a time; memory does not grow with the video.

    Args:
        model: the model; its preprocessing is used.
        gazing_ratio, task_loss_requirement: numbers, see `autogaze.decoding.limits`.
        tiles: look at full resolution, tile by tile, instead of at the whole frame in one square.
        gaze_stride: with `tiles` or a grid, look with so many times fewer pixels each way: fewer tiles, coarser
            choices.
        grid: of the results; frames are resized to its size.
        scales: of that grid, in pixels, that may be chosen from.

    Raises:
        ValueError: if the stride is not a whole number from 1 on, is above 1 without `tiles`, or (with the first
            frames) saves no tiles.
    """

    def __init__(
        self,
        model: GazeNetwork,
        gazing_ratio: Limit = DEFAULT,
        task_loss_requirement: Limit = DEFAULT,
        tiles: bool = False,
        gaze_stride: int = 1,
        grid: PatchGrid | None = None,
        scales: Sequence[int] | int | None = None,
    ) -> None:
        if tiles and grid is not None:
            raise ValueError("give tiles=True, which is a grid of the frame's own size, or grid, not both")
        model.check_weights()
        self.model, self.tiles, self.gaze_stride, self.scales = model, tiles, gaze_stride, scales
        self.limits = choose_limits(model.config, gazing_ratio, task_loss_requirement)
        self._preprocessor = model.preprocessor
        self._tiling: Tiling | None = None
        if grid is not None and grid != model.grid:
            self._tiling = tiling_onto(model.grid, grid, gaze_stride)
            self._preprocessor = replace(model.preprocessor, size=(grid.height_px, grid.width_px))
        check_stride(gaze_stride, tiles or self._tiling is not None)
        self._decoding: Decoding | None = None
        self._frame_size: tuple[int, int] | None = None
        self._at_once = 1  # frames
        self._requests: dict[int, Request] = {}  # by the number of frames
        if not tiles:
            self._request(1)  # refuses what does not fit before there is a frame

    @torch.no_grad()
    def __call__(self, frames: Any) -> Gaze:
        """The gaze (1, T, K) of the next frames, (T, H, W, 3) uint8, all frames of a video of one size.

        Frames are chosen in many at a time. Where the first call brings a single one, they are expected one by one, as
        from a camera, and each is answered as fast as it can be.
        """
        frames = as_clip(frames)
        size = (int(frames.shape[-3]), int(frames.shape[-2]))
        if self._decoding is None:
            self._open(size, one_by_one=len(frames) == 1)
        if size != self._frame_size:
            raise ValueError(
                f"frames must be uint8 (T, H, W, 3) of {self._frame_size} pixels like the first ones, "
                f"got {tuple(frames.shape)}"
            )
        return Gaze.join([self._choose(part) for part in frames.split(self._at_once)])

    def _open(self, size: tuple[int, int], one_by_one: bool) -> None:
        if self.tiles:
            self._tiling = make_tiling(self.model.grid, size, gaze_stride=self.gaze_stride)
        self._frame_size = size
        tiles = 1 if self._tiling is None else self._tiling.count
        self._at_once = 1 if one_by_one else frames_at_once(tiles, self.model.device)
        self._decoding = begin(self.model, self._request(1), ENDLESS, stream=one_by_one)

    def _request(self, frames: int) -> Request:
        """The request of so many frames; the same object each time, which a back end knows again."""
        if frames not in self._requests:
            self._requests[frames] = request_tiles(self.model, self.limits, 1, frames, self._tiling, self.scales)
        return self._requests[frames]

    def _choose(self, frames: Tensor) -> Gaze:
        assert self._decoding is not None
        frames = to_device(frames, self.model.device)
        video = self._preprocessor.normalise(frames)[None] if self.tiles else self._preprocessor(frames)
        return decode_next(self.model, self._decoding, video, self._request(len(frames)), self._tiling)


def gaze_frames(
    model: GazeNetwork,
    frames: Iterable[Any],
    gazing_ratio: Limit = DEFAULT,
    task_loss_requirement: Limit = DEFAULT,
    tiles: bool = False,
    at_once: int = FRAMES_AT_ONCE,
    gaze_stride: int = 1,
) -> Iterator[Gaze]:
    """`AutoGaze.gaze_frames` under its name of version 0.1, which goes in version 0.3."""
    message = "gaze_frames(model, frames) is now model.gaze_frames(frames); the old name goes in version 0.3"
    warnings.warn(message, DeprecationWarning, stacklevel=2)
    look = FrameGazer(model, gazing_ratio, task_loss_requirement, tiles, gaze_stride)
    return (look(part) for part in in_chunks(iter(frames), at_once))
