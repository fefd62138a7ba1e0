"""Ranking: from a score for every patch to a gaze that takes the best within each frame's budget.

Every selector is a callable `selector(video, gazing_ratio, generator=None) -> Gaze`, made for one `PatchGrid`. What
most of them do is score patches; `best_first` does the rest. Ties go to the lower id, that is to the coarser patch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from autogaze.core.checks import check_finite, check_video
from autogaze.core.gaze import Gaze
from autogaze.core.grid import PatchGrid
from autogaze.decoding.request import PerFrame, make_request
from autogaze.selectors.lattice import Lattice

NEVER = float("-inf")  # score of a patch that a method does not take even where budget is left


class Selector(Protocol):
    """A chooser of patches that is not trained; the same call as a model's `generate`."""

    grid: PatchGrid

    def __call__(self, video: Tensor, gazing_ratio: PerFrame, generator: torch.Generator | None = None) -> Gaze:
        """Choose patches of (B, T, 3, H, W) float video, at most the budget of `gazing_ratio` in each frame."""
        ...


def open_video(video: Tensor, grid: PatchGrid, gazing_ratio: PerFrame) -> tuple[Tensor, Tensor]:
    """Check a clip and what is asked for it.

    Returns:
        the video as float32 at the grid's frame size, (B, T, 3, height_px, width_px), and the budget (B, T) int64 on
        the video's device.

    Raises:
        ValueError: if it is no clip, or (on a CPU, where looking costs little) holds NaN or infinite values.
    """
    check_video(video)
    check_finite(video)
    budget = make_request(grid, video.shape[0], video.shape[1], gazing_ratio).budget.to(video.device)
    size = (grid.height_px, grid.width_px)
    if video.shape[-2:] != size:
        frames = F.interpolate(video.flatten(0, 1).float(), size=size, mode="bilinear", antialias=True)
        video = frames.unflatten(0, video.shape[:2])
    return video.float(), budget


@dataclass(frozen=True)
class ScoringSelector(ABC):
    """Scores every patch and takes the best: exactly the budget in every frame."""

    grid: PatchGrid

    @cached_property
    def lattice(self) -> Lattice:
        return Lattice(self.grid)

    @torch.no_grad()
    def __call__(self, video: Tensor, gazing_ratio: PerFrame, generator: torch.Generator | None = None) -> Gaze:
        """Choose patches; deterministic, `generator` is not used."""
        video, budget = open_video(video, self.grid, gazing_ratio)
        return best_first(self.scores(video, budget), budget, self.grid)

    @abstractmethod
    def scores(self, video: Tensor, budget: Tensor) -> Tensor:
        """(B, T, patches_per_frame) of an opened video (B, T, 3, height_px, width_px) with budgets (B, T)."""


def best_first(scores: Tensor, budget: Tensor, grid: PatchGrid) -> Gaze:
    """Take the best patches of every frame, best first.

    Args:
        scores: (B, T, patches_per_frame) float; `NEVER` where a patch may not be taken.
        budget: (B, T) int64, patches a frame may spend.
        grid: the grid of the scores.
    """
    width = int(budget.max())
    ranked = scores.sort(dim=-1, descending=True, stable=True)
    ids, values = ranked.indices[..., :width], ranked.values[..., :width]
    slots = torch.arange(width, device=ids.device)
    return Gaze(ids, (slots < budget[..., None]) & (values > NEVER), grid)


def uniform(shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Uniform numbers in [0, 1) on a device, the same for a generator wherever the video is."""
    source = generator.device if generator is not None else "cpu"
    return torch.rand(shape, generator=generator, device=source, dtype=torch.float32).to(device)
