"""Features of pixels for selectors, brightness and change, and the selector that needs no more: gradient.

*Gradient* is the plainest saliency of a still picture: mean length of the brightness gradient (central differences)
in a patch, in every frame on its own. Blind to redundancy in time: a still, textured background costs the same in
each frame.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from autogaze.core.grid import PatchGrid
from autogaze.selectors.lattice import Lattice
from autogaze.selectors.ranking import ScoringSelector


def luminance(video: Tensor) -> Tensor:
    """Brightness (ITU-R BT.601 weights): (B, T, 3, H, W) RGB to (B, T, H, W), in the range of the input."""
    return (video * video.new_tensor((0.299, 0.587, 0.114))[:, None, None]).sum(-3)


def finest_change(video: Tensor, grid: PatchGrid) -> Tensor:
    """(B, T, patches of the finest scale): mean absolute difference from the frame before; 0 in the first frame.

    Args:
        video: (B, T, 3, height_px, width_px) float.
        grid: the grid of the patches.
    """
    change = (video[:, 1:] - video[:, :-1]).abs().mean(2)
    lattice = Lattice(grid)
    cells = lattice.pool(F.pad(change, (0, 0, 0, 0, 1, 0)))
    return lattice.means(cells)[..., grid.offsets[-1] :]


class GradientSelector(ScoringSelector):
    """Scores patches by the length of their gradients."""

    def scores(self, video: Tensor, budget: Tensor) -> Tensor:
        down, right = torch.gradient(luminance(video), dim=(-2, -1))
        return self.lattice.means(self.lattice.pool(torch.hypot(down, right)))
