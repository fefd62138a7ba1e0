"""Gazing frame by frame: a camera, or a file of any length, in constant memory."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from autogaze.core.gaze import Gaze
from autogaze.decoding.backends import begin
from autogaze.decoding.clip import join_frames
from autogaze.decoding.request import make_request
from autogaze.network.network import GazeNetwork


class GazeStream:
    """Streams side by side, one frame of each at a time. Made by `AutoGaze.stream`."""

    def __init__(
        self,
        model: GazeNetwork,
        gazing_ratio: float | Tensor | None,
        task_loss_requirement: float | Tensor | None,
        batch: int,
    ) -> None:
        if batch < 1:
            raise ValueError(f"a stream needs at least one clip side by side, got batch {batch}")
        request = make_request(model.grid, batch, 1, gazing_ratio, task_loss_requirement)
        if request.requirement is not None:
            request = replace(request, requirement=model.config.threshold(request.requirement))
        self.model, self.batch, self.request = model, batch, request
        self.frame = 0  # frames seen
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next frame opens a new clip."""
        self.frame = 0
        self._decoding = begin(self.model, self.request, self.model.config.max_num_frames + 1, stream=True)

    @torch.no_grad()
    def step(self, frame: Tensor) -> Gaze:
        """Choose patches of the next frame.

        Args:
            frame: (B, 3, H, W) float, preprocessed.

        Returns:
            Gaze of (B, 1, K).
        """
        if frame.ndim != 4 or frame.shape[:2] != (self.batch, 3) or not frame.is_floating_point():
            raise ValueError(f"frame must be ({self.batch}, 3, H, W) float, got {frame.dtype} {tuple(frame.shape)}")
        self.frame += 1
        return join_frames([self._decoding.decode(frame[:, None], self.request)], self.model)
