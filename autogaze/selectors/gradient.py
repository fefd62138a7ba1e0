"""Gradient: look at edges and texture.

The plainest saliency of a still picture: mean length of the brightness gradient (central differences) in a patch, in
every frame on its own. Blind to redundancy in time: a still, textured background costs the same in each frame.
"""

from __future__ import annotations

import torch
from torch import Tensor

from autogaze.selectors.luminance import luminance
from autogaze.selectors.ranking import ScoringSelector


class GradientSelector(ScoringSelector):
    """Scores patches by the length of their gradients."""

    def scores(self, video: Tensor, budget: Tensor) -> Tensor:
        down, right = torch.gradient(luminance(video), dim=(-2, -1))
        return self.lattice.means(self.lattice.pool(torch.hypot(down, right)))
