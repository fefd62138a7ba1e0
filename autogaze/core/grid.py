"""The patch grid: integer arithmetic between patch ids, places and pixel boxes.

Ids are local to a frame and run coarse to fine over the scales, row by row within a scale.
With scales 32, 64, 112 and 224 and 16-pixel patches a frame has 4 + 16 + 49 + 196 = 265 patches:
id 0 is the top-left quarter of the frame, id 264 the bottom-right 16 x 16 pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class PatchGrid:
    """Patches of one frame over several scales.

    A square grid (the published one) is `scales` x `patch_size`. With `frame_size` the same cells are
    laid over a frame of any size: `scales[-1]` is then the size of a tile, and the cells that would
    start outside the frame are cut off.
    """

    scales: tuple[int, ...] = (32, 64, 112, 224)  # pixels, ascending
    patch_size: int = 16  # pixels, at every scale
    frame_size: tuple[int, int] | None = None  # (height, width) in pixels; None: a scales[-1] square

    def __post_init__(self) -> None:
        if not self.scales or self.patch_size < 1:
            raise ValueError(f"a grid needs scales and a positive patch_size, got {self.scales} and {self.patch_size}")
        if any(b <= a for a, b in zip(self.scales, self.scales[1:], strict=False)):
            raise ValueError(f"scales must ascend, got {self.scales}")
        if self.scales[0] < self.patch_size:
            raise ValueError(f"every scale must hold a patch of {self.patch_size} px, got {self.scales}")
        if self.frame_size is not None and min(self.frame_size) < 1:
            raise ValueError(f"frame_size must be positive (height, width), got {self.frame_size}")

    @classmethod
    def parse(cls, scales: str, patch_size: int = 16) -> PatchGrid:
        """Read the published spelling, such as "32+64+112+224"."""
        return cls(tuple(sorted(int(scale) for scale in str(scales).split("+"))), patch_size)

    @cached_property
    def height_px(self) -> int:
        """Height of the frame in pixels of the finest scale."""
        return self.frame_size[0] if self.frame_size else self.scales[-1]

    @cached_property
    def width_px(self) -> int:
        """Width of the frame in pixels of the finest scale."""
        return self.frame_size[1] if self.frame_size else self.scales[-1]

    @cached_property
    def sides(self) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of every scale."""
        if self.frame_size is None:
            return tuple((scale // self.patch_size,) * 2 for scale in self.scales)
        return tuple(
            (
                _cells(self.height_px, self._tile_side(k), self.tile_px),
                _cells(self.width_px, self._tile_side(k), self.tile_px),
            )
            for k in range(len(self.scales))
        )

    @cached_property
    def tile_px(self) -> int:
        """Side in pixels of the square that `scales` describes."""
        return self.scales[-1]

    @cached_property
    def patches_per_scale(self) -> tuple[int, ...]:
        return tuple(rows * columns for rows, columns in self.sides)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First id of every scale."""
        return tuple(sum(self.patches_per_scale[:k]) for k in range(len(self.scales)))

    @cached_property
    def patches_per_frame(self) -> int:
        return sum(self.patches_per_scale)

    def budget(self, gazing_ratio: float) -> int:
        """Most ids a frame may spend at a gazing ratio: `max(1, int(ratio * ids))` (published rule)."""
        if not 0 < gazing_ratio <= 1:
            raise ValueError(f"gazing_ratio must be in (0, 1], got {gazing_ratio}")
        return max(1, int(gazing_ratio * self.patches_per_frame))

    def scale_index(self, scale: int) -> int:
        """Index of a scale that is named by its index (0 = coarsest) or by its size in pixels."""
        if scale in self.scales:
            return self.scales.index(scale)
        if -len(self.scales) <= scale < len(self.scales):
            return scale % len(self.scales)
        raise ValueError(
            f"no scale {scale}: this grid has {self.scales} (pixels), or index 0 to {len(self.scales) - 1}"
        )

    def locate(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scale index, row and column of ids, each of the shape of `ids`."""
        table = torch.tensor(self._places, device=ids.device)[ids]
        return table[..., 0], table[..., 1], table[..., 2]

    def id_at(self, scale: int, row: int, column: int) -> int:
        """Id of the patch at a place."""
        k = self.scale_index(scale)
        rows, columns = self.sides[k]
        if not (0 <= row < rows and 0 <= column < columns):
            raise ValueError(f"scale {self.scales[k]} has {rows} x {columns} patches, no row {row}, column {column}")
        return self.offsets[k] + row * columns + column

    def boxes(self, ids: Tensor) -> Tensor:
        """Pixel boxes (left, top, right, bottom) of ids in the frame, right and bottom excluded.

        Args:
            ids: (...) int64, 0 <= id < patches_per_frame.

        Returns:
            (..., 4) float32, in pixels of the finest scale, cut to the frame.
        """
        return torch.tensor(self._boxes, dtype=torch.float32, device=ids.device)[ids]

    def cover(self) -> Tensor:
        """(patches_per_frame, finest rows, finest columns) bool: the finest cells whose centre a patch covers."""
        rows, columns = self.sides[-1]
        cell = self.tile_px / self._tile_side(-1)
        x = (torch.arange(columns, dtype=torch.float32) + 0.5) * cell
        y = (torch.arange(rows, dtype=torch.float32) + 0.5) * cell
        left, top, right, bottom = torch.tensor(self._uncut_boxes, dtype=torch.float32).unbind(-1)
        in_x = (x >= left[:, None]) & (x < right[:, None])
        in_y = (y >= top[:, None]) & (y < bottom[:, None])
        return in_y[:, :, None] & in_x[:, None, :]

    def to_dict(self) -> dict[str, Any]:
        return {
            "scales": list(self.scales),
            "patch_size": self.patch_size,
            "frame_size": list(self.frame_size) if self.frame_size else None,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PatchGrid:
        size = data.get("frame_size")
        return cls(tuple(data["scales"]), data["patch_size"], tuple(size) if size else None)

    def _tile_side(self, k: int) -> int:
        return self.scales[k] // self.patch_size

    @cached_property
    def _places(self) -> list[tuple[int, int, int]]:
        return [
            (k, row, column)
            for k, (rows, columns) in enumerate(self.sides)
            for row in range(rows)
            for column in range(columns)
        ]

    @cached_property
    def _uncut_boxes(self) -> list[tuple[float, float, float, float]]:
        cells = [self.tile_px / self._tile_side(k) for k in range(len(self.scales))]
        return [
            (column * cells[k], row * cells[k], (column + 1) * cells[k], (row + 1) * cells[k])
            for k, row, column in self._places
        ]

    @cached_property
    def _boxes(self) -> list[tuple[float, float, float, float]]:
        return [
            (left, top, min(right, self.width_px), min(bottom, self.height_px))
            for left, top, right, bottom in self._uncut_boxes
        ]


def _cells(length_px: int, tile_side: int, tile_px: int) -> int:
    """The number of cells of tile_px / tile_side pixels that cover a length."""
    return -(-length_px * tile_side // tile_px)
