"""The lattice: the coarsest raster of cells in which every patch of every scale is a whole rectangle.

With sides 2, 4, 7 and 14 a frame of 224 px has 28 x 28 cells of 8 px; a patch of the coarsest scale covers 14 x 14 of
them, one of the finest 2 x 2. Sums over patches of all scales are then exact and cheap.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import lcm

import torch
import torch.nn.functional as F
from torch import Tensor

from autogaze.core.grid import PatchGrid


@dataclass(frozen=True)
class Lattice:
    """Cells under the patches of one grid."""

    grid: PatchGrid

    @cached_property
    def steps(self) -> tuple[int, ...]:
        """Cells along the side of a patch of every scale, coarse to fine."""
        return tuple(self.tile // (scale // self.grid.patch_size) for scale in self.grid.scales)

    @cached_property
    def tile(self) -> int:
        """Cells along the side of the square that the grid's scales describe."""
        return lcm(*(scale // self.grid.patch_size for scale in self.grid.scales))

    @cached_property
    def size(self) -> tuple[int, int]:
        """(rows, columns) of cells in a frame; the last ones may be cut off."""
        return self._cells(self.grid.height_px), self._cells(self.grid.width_px)

    def pool(self, pixels: Tensor) -> Tensor:
        """Mean over the pixels of each cell: (..., height, width) to (..., rows, columns)."""
        flat = pixels.reshape(-1, 1, *pixels.shape[-2:])
        bottom, right = (
            -(-count * self.grid.tile_px // self.tile) - length
            for count, length in zip(self.size, pixels.shape[-2:], strict=True)
        )
        cells = F.adaptive_avg_pool2d(F.pad(flat, (0, right, 0, bottom)), self.size)
        return cells.reshape(*pixels.shape[:-2], *self.size)

    def spread(self, cells: Tensor) -> Tensor:
        """Values of cells repeated over their pixels: (..., rows, columns) to (..., height, width)."""
        rows, columns = (
            torch.arange(length, device=cells.device) * self.tile // self.grid.tile_px
            for length in (self.grid.height_px, self.grid.width_px)
        )
        return cells[..., rows, :][..., columns]

    def sums(self, cells: Tensor, scale: int) -> Tensor:
        """Sum over the cells of each patch of a scale (by index): (..., rows, columns) to (..., patches)."""
        step, (rows, columns) = self.steps[scale], self.grid.sides[scale]
        right, bottom = columns * step - self.size[1], rows * step - self.size[0]
        flat = cells.reshape(-1, 1, *self.size)
        flat = F.pad(flat, (0, right, 0, bottom)) if right or bottom else flat
        return F.avg_pool2d(flat, step, divisor_override=1).reshape(*cells.shape[:-2], rows * columns)

    def means(self, cells: Tensor) -> Tensor:
        """Mean over the cells of every patch: (..., rows, columns) to (..., patches_per_frame)."""
        area = cells.new_ones(self.size)
        scales = range(len(self.steps))
        return torch.cat([self.sums(cells, k) / self.sums(area, k) for k in scales], dim=-1)

    def rectangles(self, device: torch.device | str = "cpu") -> Tensor:
        """(patches_per_frame, 4) int64: first row, end row, first column, end column of the cells under every patch."""
        scale, row, column = self.grid.locate(torch.arange(self.grid.patches_per_frame, device=device))
        step = torch.tensor(self.steps, device=device)[scale]
        return torch.stack([row * step, (row + 1) * step, column * step, (column + 1) * step], dim=-1)

    def inside(self, rectangles: Tensor) -> Tensor:
        """Cells of rectangles: (..., 4) to (..., rows, columns) bool."""
        top, bottom, left, right = rectangles[..., None].unbind(-2)
        rows, columns = (torch.arange(count, device=rectangles.device) for count in self.size)
        in_rows, in_columns = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
        return in_rows[..., :, None] & in_columns[..., None, :]

    def _cells(self, length_px: int) -> int:
        return -(-length_px * self.tile // self.grid.tile_px)
