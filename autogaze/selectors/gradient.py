"""Gradient: look at edges and texture.

The plainest saliency of a still picture: mean length of the brightness gradient (central differences) in a patch, in
every frame on its own. Blind to redundancy in time: a still, textured background costs the same in each frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from autogaze.decoding.request import PerFrame
from autogaze.gaze import Gaze
from autogaze.grid import PatchGrid
from autogaze.selectors.lattice import Lattice
from autogaze.selectors.luminance import luminance
from autogaze.selectors.ranking import best_first, open_video


@dataclass(frozen=True)
class GradientSelector:
    """Exactly the budget in every frame."""

    grid: PatchGrid

    @cached_property
    def lattice(self) -> Lattice:
        return Lattice(self.grid)

    @torch.no_grad()
    def __call__(self, video: Tensor, gazing_ratio: PerFrame, generator: torch.Generator | None = None) -> Gaze:
        """Choose patches; deterministic, `generator` is not used."""
        video, budget = open_video(video, self.grid, gazing_ratio)
        down, right = torch.gradient(luminance(video), dim=(-2, -1))
        return best_first(self.lattice.means(self.lattice.pool(torch.hypot(down, right))), budget, self.grid)
