"""First frame, then random: know the opening picture coarse to fine, then sample at random.

The usual simple answer to redundancy in time. The first frame gets no more than its own budget, so that every
selector is compared at the same number of patches per frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from autogaze.core.gaze import Gaze
from autogaze.core.grid import PatchGrid
from autogaze.decoding.request import PerFrame
from autogaze.selectors.coarse import coarse_order
from autogaze.selectors.ranking import best_first, open_video, uniform


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
