"""Gazing frame by frame: a camera, or a file of any length, in constant memory."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock

import torch
from torch import Tensor

from autogaze.core.checks import check_values
from autogaze.core.gaze import Gaze
from autogaze.core.tiling import Tiling
from autogaze.decoding.backends import begin
from autogaze.decoding.limits import DEFAULT, Limit, choose_limits
from autogaze.decoding.tiles import decode_next, request_tiles
from autogaze.network.network import GazeNetwork


class GazeStream:
    """Streams side by side, one frame of each at a time. Made by `AutoGaze.stream`.

    Frames that several threads give to one stream are worked through one after another.

    Args:
        model: the network.
        gazing_ratio, task_loss_requirement: as in `AutoGaze.stream`.
        batch: streams side by side.
        scales: of the grid of the results, in pixels, that may be chosen from; None: all.
        tiling: how frames are cut into tiles; None: frames are resized to the model's square.
    """

    def __init__(
        self,
        model: GazeNetwork,
        gazing_ratio: Limit = DEFAULT,
        task_loss_requirement: Limit = DEFAULT,
        batch: int = 1,
        scales: Sequence[int] | int | None = None,
        tiling: Tiling | None = None,
    ) -> None:
        if batch < 1:
            raise ValueError(f"a stream needs at least one clip side by side, got batch {batch}")
        model.check_weights()
        limits = choose_limits(model.config, gazing_ratio, task_loss_requirement)
        self.model, self.batch, self.tiling = model, batch, tiling
        self.request = request_tiles(model, limits, batch, 1, tiling, scales)
        self.grid = model.grid if tiling is None else tiling.whole
        self.frame = 0  # frames seen
        self._one_at_a_time = Lock()
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next frame opens a new clip."""
        with self._one_at_a_time:
            self.frame = 0
            self._decoding = begin(self.model, self.request, self.model.config.max_num_frames + 1, stream=True)

    @torch.no_grad()
    def step(self, frame: Tensor) -> Gaze:
        """Choose patches of the next frame.

        Args:
            frame: (B, 3, H, W) float, preprocessed. Its values are checked, on a GPU those of the first frame.

        Returns:
            Gaze of (B, 1, K).
        """
        if (
            not isinstance(frame, Tensor)
            or frame.ndim != 4
            or frame.shape[:2] != (self.batch, 3)
            or not frame.is_floating_point()
        ):
            got = f"{frame.dtype} {tuple(frame.shape)}" if isinstance(frame, Tensor) else type(frame).__name__
            raise ValueError(
                f"frame must be ({self.batch}, 3, H, W) float, got {got}; model.preprocessor(frames) makes it of uint8 "
                "RGB frames"
            )
        with self._one_at_a_time:
            finish = None
            if self.frame == 0 or not frame.is_cuda:
                finish = check_values(frame, *self.model.preprocessor.value_range)
            if self.tiling is not None:
                self.tiling.check_size(frame)
            gaze = decode_next(self.model, self._decoding, frame[:, None], self.request, self.tiling)
            if finish is not None:
                finish()
            self.frame += 1
            return gaze
