"""Pooled pyramid: coarse everywhere, fine where it changes.

Whole coarse scales as far as half the budget pays for them, the coarsest in any case (pooled tokens of every frame, as
in slow-fast pooling, e.g. SlowFast-LLaVA, arXiv:2407.15841), the rest on the patches of the finest scale that differ
most from the frame before.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from autogaze.core.gaze import Gaze
from autogaze.core.grid import PatchGrid
from autogaze.decoding.request import PerFrame
from autogaze.selectors.coarse import coarse_order, even_order
from autogaze.selectors.features import finest_change
from autogaze.selectors.ranking import best_first, open_video


@dataclass(frozen=True)
class PyramidSelector:
    """Exactly the budget in every frame."""

    grid: PatchGrid

    @torch.no_grad()
    def __call__(self, video: Tensor, gazing_ratio: PerFrame, generator: torch.Generator | None = None) -> Gaze:
        """Choose patches; deterministic, `generator` is not used."""
        video, budget = open_video(video, self.grid, gazing_ratio)
        frames, start = budget.shape[1], self.grid.offsets[-1]
        change = finest_change(video, self.grid)
        even = even_order(self.grid, frames, video.device)[:, start:].to(change.dtype)
        base = coarse_order(self.grid, frames, video.device).to(change.dtype)  # at most 1, falling by 2 a scale
        scores = (base - 100.0).repeat(len(video), 1, 1)
        scores[..., start:] = change + 1e-3 * even  # without any change, evenly
        ends = torch.tensor([0, *self.grid.offsets[1:], self.grid.patches_per_frame], device=video.device)
        pooled = (ends <= budget[..., None] // 2).sum(-1) - 1  # whole scales that half the budget pays for
        scale = self.grid.locate(torch.arange(self.grid.patches_per_frame, device=video.device))[0]
        whole = scale < pooled.clamp(1, len(self.grid.scales) - 1)[..., None]
        return best_first((base + 100.0).where(whole, scores), budget, self.grid)
