"""Frames of any size and number, as a camera or a file gives them: preprocessed, cut into tiles, decoded in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from autogaze.core.gaze import Gaze
from autogaze.core.tiling import Tiling, check_stride, make_tiling
from autogaze.decoding.backends import Decoding, begin
from autogaze.decoding.clip import frames_at_once, join_frames
from autogaze.decoding.request import Request, make_request
from autogaze.media.preprocess import check_frames
from autogaze.media.source import to_device
from autogaze.media.video import FRAMES_AT_ONCE
from autogaze.network.network import GazeNetwork

ENDLESS = 1 << 31  # frames of a video whose length is not known


class FrameGazer:
    """Looks at uint8 frames of any size, in order, a few at a time; memory does not grow with the video.

    Args:
        model: the model; its preprocessing is used.
        gazing_ratio, task_loss_requirement: numbers, see `defaults`.
        tiles: look at full resolution, tile by tile, instead of at the whole frame in one square.
        gaze_stride: with `tiles`, look with so many times fewer pixels each way: fewer tiles, coarser choices.

    Raises:
        ValueError: if the stride is not a whole number from 1 on, is above 1 without `tiles`, or (with the first
            frames) saves no tiles.
    """

    def __init__(
        self,
        model: GazeNetwork,
        gazing_ratio: float | None = None,
        task_loss_requirement: float | None = None,
        tiles: bool = False,
        gaze_stride: int = 1,
    ) -> None:
        check_stride(gaze_stride, tiles)
        self.model, self.tiles, self.gaze_stride = model, tiles, gaze_stride
        self.gazing_ratio, self.task_loss_requirement = gazing_ratio, task_loss_requirement
        self._decoding: Decoding | None = None
        self._tiling: Tiling | None = None
        self._frame_size: tuple[int, int] | None = None
        self._at_once = 1  # frames
        self._requests: dict[int, Request] = {}  # by the number of frames

    @torch.no_grad()
    def __call__(self, frames: np.ndarray | Tensor) -> Gaze:
        """The gaze (1, T, K) of the next frames, (T, H, W, 3) uint8, all frames of a video of one size.

        Frames are chosen in many at a time. Where the first call brings a single one, they are expected one by one, as
        from a camera, and each is answered as fast as it can be.
        """
        frames = check_frames(frames)
        size = (int(frames.shape[-3]), int(frames.shape[-2]))
        if self._decoding is None:
            self._open(size, one_by_one=len(frames) == 1)
        if frames.ndim != 4 or size != self._frame_size:
            raise ValueError(
                f"frames must be uint8 (T, H, W, 3) of {self._frame_size} pixels like the first ones, "
                f"got {tuple(frames.shape)}"
            )
        return Gaze.join([self._choose(part) for part in frames.split(self._at_once)])

    def _open(self, size: tuple[int, int], one_by_one: bool) -> None:
        self._tiling = make_tiling(self.model.grid, size, gaze_stride=self.gaze_stride) if self.tiles else None
        self._frame_size = size
        self._at_once = 1 if one_by_one else frames_at_once(self._batch, self.model.device)
        self._decoding = begin(self.model, self._request(1), ENDLESS, stream=one_by_one)

    @property
    def _batch(self) -> int:
        return 1 if self._tiling is None else self._tiling.count

    def _request(self, frames: int) -> Request:
        """What is asked of so many frames; the same object each time, which a back end knows again."""
        if frames not in self._requests:
            grid, config = self.model.grid, self.model.config
            request = make_request(grid, self._batch, frames, self.gazing_ratio, self.task_loss_requirement)
            if request.requirement is not None:
                request = replace(request, requirement=config.threshold(request.requirement))
            self._requests[frames] = request
        return self._requests[frames]

    def _choose(self, frames: Tensor) -> Gaze:
        assert self._decoding is not None
        frames, request = to_device(frames, self.model.device), self._request(len(frames))
        if self._tiling is None:
            return join_frames([self._decoding.decode(self.model.preprocessor(frames), request)], self.model)
        tiles = self._tiling.cut(self.model.preprocessor.normalise(frames)[None])
        gaze = join_frames([self._decoding.decode(tiles, request)], self.model)
        return Gaze.from_patch_mask(self._tiling.join(gaze.patch_mask()), self._tiling.whole)


def gaze_frames(
    model: GazeNetwork,
    frames: Iterable[np.ndarray | Tensor],
    gazing_ratio: float | None = None,
    task_loss_requirement: float | None = None,
    tiles: bool = False,
    at_once: int = FRAMES_AT_ONCE,
    gaze_stride: int = 1,
) -> Iterator[Gaze]:
    """Gaze at a camera or any other source of frames.

    Args:
        frames: uint8 frames (H, W, 3) of one size, in order.
        gazing_ratio, task_loss_requirement, tiles, gaze_stride: as in `FrameGazer`.
        at_once: frames a result.

    Yields:
        Gaze (1, t, K) of the next t <= at_once frames.
    """
    look, waiting = FrameGazer(model, gazing_ratio, task_loss_requirement, tiles, gaze_stride), []
    for frame in frames:
        waiting.append(torch.as_tensor(frame))
        if len(waiting) == at_once:
            yield look(torch.stack(waiting))
            waiting = []
    if waiting:
        yield look(torch.stack(waiting))
