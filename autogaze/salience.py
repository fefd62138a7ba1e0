"""Scores of patches that are read at their own places.

The decoder's heads read one state a group, in which 196 places must share 192 numbers: it learns soon whether to look
coarsely or finely, and very slowly exactly where. Here a small network rates every place from its own token, by
scale; a patch's score is the mean over the places it covers, and is added to what every head says of it in that
frame. Tokens know what was seen of their places (`autogaze.seen`), so a rating can be what a look is still worth.

Not in arXiv:2603.12254; published checkpoints have none of it and decode as they did.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autogaze.grid import PatchGrid
from autogaze.seen import patch_at


class Salience(nn.Module):
    """Rates places and scores patches.

    Args:
        grid: a square grid.
        side: visual tokens in a row of a frame.
        width: of tokens, and of the hidden layer.
    """

    def __init__(self, grid: PatchGrid, side: int, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, width)
        self.rating = nn.Linear(width, len(grid.scales))
        self.patch_at: Tensor
        self.pool: Tensor
        table = patch_at(grid, side)
        self.register_buffer("patch_at", table, persistent=False)  # (scales, N)
        self.register_buffer("pool", _pool(table, grid.patches_per_frame), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores (..., patches_per_frame) float32 of visual tokens (..., N, width) that are about to be decoded."""
        ratings = self.rating(F.silu(self.hidden(tokens))).float()  # (..., N, scales)
        with torch.autocast(tokens.device.type, enabled=False):
            return ratings.transpose(-1, -2).flatten(-2) @ self.pool.float()


def _pool(table: Tensor, patches: int) -> Tensor:
    """(scales * N, patches): the mean over the places of each patch, of a `patch_at` table."""
    pool = torch.zeros(table.numel(), patches)
    pool[torch.arange(table.numel()), table.flatten()] = 1.0
    return pool / pool.sum(0).clamp(min=1)
