"""Choices by how much the patches of the finest scale differ from the frame before: evs, rlt and pyramid.

*EVS*, efficient video sampling: the patches least like the frame before (Bagrov et al. 2025, arXiv:2510.14624). A
patch scores its L1 distance, in pixels, to the same patch one frame earlier, and the most dissimilar are kept. Two
deviations, so that every frame spends its own budget: the cut-off is taken per frame instead of over the clip, and the
first frame, kept whole in the paper, is sampled evenly.

*RLT*, run-length tokenization, "Don't Look Twice" (Choudhury et al., NeurIPS 2024, arXiv:2411.05222). A patch that
differs little from the same patch one frame earlier continues a run and is not taken; every other patch begins one. A
run whose beginning did not fit a frame's budget begins again in the next. Patches that changed come first (most changed
first), then those that were never seen, spread evenly.

*Pyramid*, pooled: coarse everywhere, fine where it changes. Whole coarse scales as far as half the budget pays for
them, the coarsest in any case (pooled tokens of every frame, as in slow-fast pooling, e.g. SlowFast-LLaVA,
arXiv:2407.15841), the rest on the patches of the finest scale that differ most from the frame before.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from autogaze.core.gaze import Gaze
from autogaze.core.grid import PatchGrid
from autogaze.decoding.request import PerFrame
from autogaze.selectors.features import finest_change
from autogaze.selectors.fixed import coarse_order, even_order
from autogaze.selectors.ranking import NEVER, best_first, open_video

_COARSER = -10.0  # score of the other scales: taken only once the finest is used up


@dataclass(frozen=True)
class DissimilaritySelector:
    """Exactly the budget in every frame."""

    grid: PatchGrid

    @torch.no_grad()
    def __call__(self, video: Tensor, gazing_ratio: PerFrame, generator: torch.Generator | None = None) -> Gaze:
        """Choose patches; deterministic, `generator` is not used."""
        video, budget = open_video(video, self.grid, gazing_ratio)
        change = finest_change(video, self.grid)
        change[:, 0] = even_order(self.grid, 1, video.device)[0, self.grid.offsets[-1] :].to(change.dtype)
        scores = change.new_full((*budget.shape, self.grid.patches_per_frame), _COARSER)
        scores[..., self.grid.offsets[-1] :] = change
        return best_first(scores, budget, self.grid)


@dataclass(frozen=True)
class RunLengthSelector:
    """At most the budget: runs are as long as they are, so a still scene needs less by nature."""

    grid: PatchGrid
    threshold: float = 0.1  # mean absolute difference of preprocessed pixels, the paper's value

    @torch.no_grad()
    def __call__(self, video: Tensor, gazing_ratio: PerFrame, generator: torch.Generator | None = None) -> Gaze:
        """Choose patches; deterministic, `generator` is not used."""
        video, budget = open_video(video, self.grid, gazing_ratio)
        change = finest_change(video, self.grid)
        scores = change.new_full((*budget.shape, self.grid.patches_per_frame), NEVER)
        start, order = self.grid.offsets[-1], even_order(self.grid, budget.shape[1], video.device)
        known = torch.zeros_like(change[:, 0], dtype=torch.bool)
        for t in range(budget.shape[1]):
            known &= change[:, t] <= self.threshold
            # change is at least 0: runs that never fitted (order - 2 < 0) come after what just changed
            unseen = order[t, start:].to(change.dtype) - 2.0
            fresh = change[:, t].where(change[:, t] > self.threshold, unseen)
            scores[:, t, start:] = fresh.where(~known, NEVER)
            known |= best_first(scores[:, t : t + 1], budget[:, t : t + 1], self.grid).mask(-1)[:, 0]
        return best_first(scores, budget, self.grid)


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
