"""RLT: run-length tokenization, "Don't Look Twice" (Choudhury et al., NeurIPS 2024, arXiv:2411.05222).

A patch of the finest scale that differs little from the same patch one frame earlier continues a run and is not
taken; every other patch begins one. A run whose beginning did not fit a frame's budget begins again in the next.
Patches that changed come first (most changed first), then those that were never seen, spread evenly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from autogaze.core.gaze import Gaze
from autogaze.core.grid import PatchGrid
from autogaze.decoding.request import PerFrame
from autogaze.selectors.coarse import even_order
from autogaze.selectors.features import finest_change
from autogaze.selectors.ranking import NEVER, best_first, open_video


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
