"""EVS: efficient video sampling, the patches least like the frame before (Bagrov et al. 2025, arXiv:2510.14624).

A patch of the finest scale scores its L1 distance, in pixels, to the same patch one frame earlier, and the most
dissimilar are kept. Two deviations, so that every frame spends its own budget: the cut-off is taken per frame instead
of over the clip, and the first frame, kept whole in the paper, is sampled evenly.
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
from autogaze.selectors.ranking import best_first, open_video

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
