"""Random: patches drawn evenly from all scales, anew in every frame. What every selector must beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from autogaze.core.gaze import Gaze
from autogaze.core.grid import PatchGrid
from autogaze.decoding.request import PerFrame
from autogaze.selectors.ranking import best_first, open_video, uniform


@dataclass(frozen=True)
class RandomSelector:
    """Exactly the budget in every frame."""

    grid: PatchGrid

    def __call__(self, video: Tensor, gazing_ratio: PerFrame, generator: torch.Generator | None = None) -> Gaze:
        """Choose patches; without a generator from torch's own."""
        video, budget = open_video(video, self.grid, gazing_ratio)
        scores = uniform((*budget.shape, self.grid.patches_per_frame), video.device, generator)
        return best_first(scores, budget, self.grid)
