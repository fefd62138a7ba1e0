"""Rollouts: several sampled gazes of each clip, what they lost, and what their ids earned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from autogaze.core.gaze import Gaze


@dataclass(frozen=True, eq=False)
class Rollouts:
    """G rollouts of each of B clips, group-major: row = rollout * B + clip."""

    video: Tensor  # (G * B, T, 3, H, W) float
    gaze: Gaze  # (G * B, T, K)
    loss: Tensor  # (G * B, T) float, reconstruction loss of every frame
    advantages: Tensor  # (G * B, T, K) float, one an id

    def __len__(self) -> int:
        return len(self.video)

    def split(self, rows: int) -> Iterator[Rollouts]:
        """Parts of at most `rows` rollouts."""
        for i in range(0, len(self), rows):
            part = slice(i, i + rows)
            yield Rollouts(self.video[part], self.gaze[part], self.loss[part], self.advantages[part])
