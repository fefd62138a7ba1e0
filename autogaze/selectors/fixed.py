"""Choices that do not look at what the video shows: random, first-frame and coarse.

*Random*: patches drawn evenly from all scales, anew in every frame. What every selector must beat.

*First frame*, then random: know the opening picture coarse to fine, then sample at random. The usual simple answer to
redundancy in time. The first frame gets no more than its own budget, so that every selector is compared at the same
number of patches per frame.

*Coarse* first: the same pyramid in every frame. The plainest fixed sampling: whole coarse scales, then as much of the
next scale as the budget leaves, spread evenly over the frame and moving on from frame to frame (a golden-ratio
sequence: neighbours in time complete one another).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from autogaze.core.gaze import Gaze
from autogaze.core.grid import PatchGrid
from autogaze.decoding.request import PerFrame
from autogaze.selectors.ranking import best_first, open_video, uniform

_GOLDEN = 0.6180339887498949


def even_order(grid: PatchGrid, frames: int, device: torch.device) -> Tensor:
    """(T, patches_per_frame) float64 in (0, 1]: best-first choices of a scale are even in space and time."""
    ids = torch.arange(grid.patches_per_frame, device=device, dtype=torch.float64)
    shift = torch.arange(frames, device=device, dtype=torch.float64)[:, None] * _GOLDEN**2
    return 1.0 - (ids * _GOLDEN + shift) % 1.0


def coarse_order(grid: PatchGrid, frames: int, device: torch.device) -> Tensor:
    """(T, patches_per_frame) float64: every patch of a coarser scale scores above every patch of a finer one."""
    scale = grid.locate(torch.arange(grid.patches_per_frame, device=device))[0]
    return even_order(grid, frames, device) - 2.0 * scale


@dataclass(frozen=True)
class CoarseSelector:
    """Exactly the budget in every frame."""

    grid: PatchGrid

    def __call__(self, video: Tensor, gazing_ratio: PerFrame, generator: torch.Generator | None = None) -> Gaze:
        """Choose patches; deterministic, `generator` is not used."""
        video, budget = open_video(video, self.grid, gazing_ratio)
        scores = coarse_order(self.grid, budget.shape[1], video.device)
        return best_first(scores.expand(*budget.shape, -1), budget, self.grid)


@dataclass(frozen=True)
class RandomSelector:
    """Exactly the budget in every frame."""

    grid: PatchGrid

    def __call__(self, video: Tensor, gazing_ratio: PerFrame, generator: torch.Generator | None = None) -> Gaze:
        """Choose patches; without a generator from torch's own."""
        video, budget = open_video(video, self.grid, gazing_ratio)
        scores = uniform((*budget.shape, self.grid.patches_per_frame), video.device, generator)
        return best_first(scores, budget, self.grid)


@dataclass(frozen=True)
class FirstFrameSelector:
    """Exactly the budget in every frame."""

    grid: PatchGrid

    def __call__(self, video: Tensor, gazing_ratio: PerFrame, generator: torch.Generator | None = None) -> Gaze:
        """Choose patches; without a generator from torch's own."""
        video, budget = open_video(video, self.grid, gazing_ratio)
        scores = uniform((*budget.shape, self.grid.patches_per_frame), video.device, generator)
        scores[:, 0] = coarse_order(self.grid, 1, video.device)[0].to(scores.dtype)
        return best_first(scores, budget, self.grid)
