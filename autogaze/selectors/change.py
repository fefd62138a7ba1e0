"""Change: how much each patch of the finest scale differs from the same patch one frame earlier."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from autogaze.core.grid import PatchGrid
from autogaze.selectors.lattice import Lattice


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
