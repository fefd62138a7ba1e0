"""Random draws of a training step: budgets, and the seed that makes it repeatable."""

from __future__ import annotations

import math

import torch
from torch import Tensor


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
