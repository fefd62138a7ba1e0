"""Frames of any size and number, as a camera or a file gives them: preprocessed, cut into tiles, decoded in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from autogaze.core.gaze import Gaze
from autogaze.core.tiling import Tiling, check_stride, make_tiling
from autogaze.decoding.stream import GazeStream
from autogaze.media.preprocess import check_frames
from autogaze.media.video import FRAMES_AT_ONCE
from autogaze.network.network import GazeNetwork


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
        self._stream: GazeStream | None = None
        self._tiling: Tiling | None = None
        self._frame_size: tuple[int, int] | None = None

    def __call__(self, frames: np.ndarray | Tensor) -> Gaze:
        """The gaze (1, T, K) of the next frames, (T, H, W, 3) uint8, all frames of a video of one size."""
        frames = check_frames(frames)
        size = (int(frames.shape[-3]), int(frames.shape[-2]))
        if self._stream is None:
            self._open(size)
        if frames.ndim != 4 or size != self._frame_size:
            raise ValueError(
                f"frames must be uint8 (T, H, W, 3) of {self._frame_size} pixels like the first ones, "
                f"got {tuple(frames.shape)}"
            )
        return Gaze.join([self._look(frame) for frame in frames])

    def _open(self, size: tuple[int, int]) -> None:
        self._tiling = make_tiling(self.model.grid, size, gaze_stride=self.gaze_stride) if self.tiles else None
        self._frame_size = size
        batch = self._tiling.count if self._tiling else 1
        self._stream = GazeStream(self.model, self.gazing_ratio, self.task_loss_requirement, batch)

    def _look(self, frame: Tensor) -> Gaze:
        assert self._stream is not None
        frame = frame[None].to(self.model.device)
        if self._tiling is None:
            return self._stream.step(self.model.preprocessor(frame)[0])
        tiles = self._tiling.cut(self.model.preprocessor.normalise(frame)[None])
        gaze = self._stream.step(tiles[:, 0])
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
