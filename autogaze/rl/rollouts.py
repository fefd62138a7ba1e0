"""Rollouts: several sampled gazes of each clip, what they lost, and what their ids earned."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from autogaze.gaze import Gaze


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


def draw_ratios(clips: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """(clips,) float64 gazing ratios, log-uniform in [low, high], evenly spread over a batch.

    One clip falls into each of `clips` equal parts of the range: batches differ less, and need buffers of one size.
    """
    part = torch.randperm(clips, generator=generator) + torch.rand(clips, dtype=torch.float64, generator=generator)
    share = part / clips
    return (math.log(low) + share * (math.log(high) - math.log(low))).exp().clamp(low, high)


def step_seed(seed: int, step: int, rank: int) -> int:
    """A seed of its own for every step of every rank, so that a resumed run draws what an unbroken one would."""
    return (seed * 1_000_003 + step) * 1_009 + rank
