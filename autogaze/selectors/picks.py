"""Greedy picks on the lattice of cells: which patches take most error away, one after another, overlaps counted once.

Errors are rounded to integers first. Sums are then exact in any order, so that the loop in PyTorch and the kernel
that does a whole frame in one launch (`pick_kernel`, on GPUs with Triton) choose the same patches.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache

import torch
from torch import Tensor

from autogaze.selectors.lattice import Lattice

TAKEN = -(2**31)  # gain of a patch that is taken
LARGEST_ERROR = 8  # of a cell: preprocessed pixels reach from about -2.7 to 2.7
KERNEL_CELLS, KERNEL_PATCHES = 8192, 4096  # more do not fit one program


class Picks:
    """The greedy choice of patches on one lattice."""

    def __init__(self, lattice: Lattice, device: torch.device) -> None:
        grid = lattice.grid
        cover = lattice.inside(lattice.rectangles(device)).flatten(1)  # (P, cells) bool
        self.scale = grid.locate(torch.arange(grid.patches_per_frame, device=device))[0].int()  # (P,)
        patches = torch.arange(grid.patches_per_frame, device=device)[:, None]
        parts = list(grid.patches_per_scale)
        self.patch_at = torch.stack(
            [(part * ids).sum(0) for part, ids in zip(cover.split(parts), patches.split(parts), strict=True)]
        )
        self.level = torch.where(cover, self.scale[:, None], -1)  # (P, cells): what a patch makes of each level
        most = LARGEST_ERROR * max(lattice.steps) ** 2
        self.unit = float(2 ** (30 - most.bit_length()))  # errors are counted in 1 / unit
        self.size = lattice.size
        small = cover.shape[1] <= KERNEL_CELLS and len(cover) <= KERNEL_PATCHES
        self.kernel = small and device.type == "cuda" and importlib.util.find_spec("triton") is not None

    def choose(self, error: Tensor, seen_error: Tensor, budget: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Pick in N frames side by side.

        Args:
            error: (N, rows, columns) float, error of what is known in each cell.
            seen_error: (N, scales, rows, columns) float, the error that a patch of each scale would leave.
            budget: (N,) int64, patches to pick.
            width: the largest budget.

        Returns:
            ids (N, width) int64, of which each row's first `budget` count, and the scale pasted in each cell
            (N, rows, columns) int64, -1 where nothing is.
        """
        known, seen = ((part * self.unit).round().int() for part in (error.flatten(1), seen_error.flatten(2)))
        gains = torch.zeros(len(error), len(self.scale), dtype=torch.int32, device=error.device)
        gains.scatter_add_(1, self.patch_at.flatten().expand(len(error), -1), (known[:, None] - seen).flatten(1))
        if self.kernel:
            from autogaze.selectors.pick_kernel import pick

            ids, levels = pick(known, seen, gains, self.patch_at, self.scale, budget, width)
        else:
            ids, levels = self._loop(known, seen, gains, budget, width)
        return ids, levels.long().unflatten(1, self.size)

    def _loop(self, known: Tensor, seen: Tensor, gains: Tensor, budget: Tensor, width: int) -> tuple[Tensor, Tensor]:
        scales, cells = seen.shape[1:]
        ids = torch.zeros(len(known), width, dtype=torch.int64, device=known.device)
        levels = torch.full((len(known), cells), -1, dtype=torch.int32, device=known.device)
        shown = torch.cat([known[:, None], seen], 1)  # (N, 1 + scales, cells): error of a cell by its level + 1
        scale = torch.arange(scales, device=known.device)[:, None]
        index = self.patch_at.flatten().expand(len(known), -1)
        left = known[:, None] - seen  # (N, scales, cells): what a patch of each scale would take away
        for pick in range(width):
            best = gains.argmax(1)
            ids[:, pick] = best
            level = self.level[best].where((pick < budget)[:, None], -1)
            levels = torch.maximum(levels, level)
            now = shown.gather(1, (levels + 1).long()[:, None]) - seen
            now = now.where(levels[:, None] < scale, 0)
            gains.scatter_add_(1, index, (now - left).flatten(1))
            gains.scatter_(1, best[:, None], TAKEN)
            left = now
        return ids, levels


@lru_cache(maxsize=16)
def picks_on(lattice: Lattice, device: torch.device) -> Picks:
    """Tables of a lattice on a device, made once."""
    return Picks(lattice, device)
