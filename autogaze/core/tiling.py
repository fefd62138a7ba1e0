"""Any resolution, any aspect, any length: frames are cut into tiles, decoded alone, and put together again.

A tile is a square of `finest side * patch size` pixels: 14 x 14 patches of 16 pixels make 224. A 1080 x 1920 frame is
5 x 9 tiles; what lies below and right of the frame is zeros, and patches that would start there are cut off. Published
models know square frames only; for them the grid is `target_scales` / `target_patch_size`, cut as published.

Choosing costs time per tile. With `gaze_stride` n a tile covers n times the length and is looked at with n times fewer
pixels each way, and a patch that is chosen stands for a block of n x n patches: 3 x 5 tiles of 1080p for n = 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count

import torch
from torch import Tensor
from torch.nn import functional as F

from autogaze.core.grid import PatchGrid


@dataclass(frozen=True)
class Tiling:
    """Cuts frames of one size into tiles, row by row, and puts together what is known of the tiles."""

    tile: PatchGrid  # of one tile: the model's grid
    whole: PatchGrid  # of the frame
    tile_px: int  # side of a tile in the frame
    rows: int
    columns: int
    stride: int = 1  # pixels of the frame along one that is looked at, and patches along one that is chosen

    @property
    def count(self) -> int:
        """Tiles a frame."""
        return self.rows * self.columns

    def check_size(self, video: Tensor) -> None:
        """Refuse frames (..., H, W) of another size than the grid's."""
        size = (self.whole.height_px, self.whole.width_px)
        if tuple(video.shape[-2:]) != size:
            raise ValueError(
                f"the grid is of frames of {size[0]} x {size[1]} pixels, got {video.shape[-2]} x {video.shape[-1]}: "
                "resize the frames, or give PatchGrid their frame_size"
            )

    def own_scales(self, scales: Sequence[int] | int | None) -> tuple[int, ...] | None:
        """The model's scales that stand for some of the frame's grid, all in pixels."""
        if scales is None:
            return None
        asked = {scales} if isinstance(scales, int) else set(scales)
        if not asked or not asked <= set(self.whole.scales):
            raise ValueError(f"scales must be some of the grid's {self.whole.scales} (pixels), got {scales}")
        return tuple(own for own, scale in zip(self.tile.scales, self.whole.scales, strict=True) if scale in asked)

    def cut(self, video: Tensor) -> Tensor:
        """(B, T, C, H, W) -> (B * count, T, C, side, side), zeros beyond the frame; side is tile_px / stride.

        With a stride a pixel is the mean of the block that it stands for: every pixel of the frame counts, once. The
        encoder's own resize has no antialias, as published, and reads four pixels of a line however many there are.
        """
        height, width = self.rows * self.tile_px, self.columns * self.tile_px
        video = F.pad(video, (0, width - video.shape[-1], 0, height - video.shape[-2]))
        if self.stride > 1:
            video = F.avg_pool2d(video.flatten(0, 1), self.stride).unflatten(0, video.shape[:2])
        tiles = video.unflatten(-1, (self.columns, -1)).unflatten(-3, (self.rows, -1))  # (B, T, C, rows, y, columns, x)
        return tiles.permute(0, 3, 5, 1, 2, 4, 6).flatten(0, 2)

    def join(self, mask: Tensor) -> Tensor:
        """(B * count, T, patches of a tile) -> (B, T, patches of the frame), for any value per patch; with a stride
        every patch of a block gets the block's."""
        parts = []
        for k, part in enumerate(mask.split(list(self.tile.patches_per_scale), dim=-1)):
            placed = part.unflatten(-1, self.tile.sides[k]).unflatten(0, (-1, self.rows, self.columns))
            placed = placed.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)  # (B, T, rows * y, columns * x)
            if self.stride > 1:
                placed = placed.repeat_interleave(self.stride, 2).repeat_interleave(self.stride, 3)
            height, width = self.whole.sides[k]
            parts.append(placed[:, :, :height, :width].flatten(2))
        return torch.cat(parts, dim=-1)


def make_tiling(
    grid: PatchGrid,
    frame_size: tuple[int, int],
    target_scales: Sequence[int] | None = None,
    target_patch_size: int | None = None,
    gaze_stride: int = 1,
) -> Tiling:
    """The tiling of frames of one size.

    Args:
        grid: the model's.
        frame_size: (height, width) in pixels.
        target_scales: pixels, ascending, as many as the grid has. A square frame of the largest one gets the
            published grid, `PatchGrid(target_scales, target_patch_size)`. On any other frame the patches keep the
            proportions of the model's scales and the grid covers the frame; by default (None) so do the scales' sizes.
        target_patch_size: pixels of a patch at the finest scale; the model's by default.
        gaze_stride: look with so many times fewer pixels each way.

    Raises:
        ValueError: if there are not as many scales, they do not fit the tiles, or the stride saves no tiles.
    """
    patch = grid.patch_size if target_patch_size is None else target_patch_size
    sides = [rows for rows, _ in grid.sides]
    tile_px = sides[-1] * patch
    whole = PatchGrid(tuple(side * patch for side in sides) if target_scales is None else tuple(target_scales), patch)
    if len(whole.scales) != len(sides):
        raise ValueError(f"target_scales must be as many as the model's {grid.scales}, got {whole.scales}")
    targets = [rows for rows, _ in whole.sides]
    if frame_size == (whole.scales[-1],) * 2:
        rows = columns = tiles_along((targets[-1],), sides[-1], gaze_stride)[0]
        if any(target > rows * side * gaze_stride for target, side in zip(targets, sides, strict=True)):
            raise ValueError(
                f"target_scales {whole.scales} have more patches than {rows} x {rows} tiles of "
                f"{gaze_stride * tile_px} px give at the model's scales {grid.scales}"
            )
    else:
        if any(target * sides[-1] != side * targets[-1] for target, side in zip(targets, sides, strict=True)):
            raise ValueError(
                f"on a {frame_size[0]} x {frame_size[1]} frame target_scales must have the proportions of "
                f"the model's scales {grid.scales}, got {whole.scales}; or resize the frame to a square "
                f"of {whole.scales[-1]} pixels"
            )
        whole = replace(whole, frame_size=frame_size)
        rows, columns = tiles_along(frame_size, tile_px, gaze_stride)
    return Tiling(grid, whole, gaze_stride * tile_px, rows, columns, gaze_stride)


def tiling_onto(grid: PatchGrid, target: PatchGrid, gaze_stride: int = 1) -> Tiling:
    """The tiling that gives gazes on a grid of a caller's own, for frames of exactly its size; see `make_tiling`.

    Args:
        grid: the model's.
        target: with as many scales; over a frame that is not square, in the proportions of the model's.
    """
    size = (target.height_px, target.width_px)
    return replace(make_tiling(grid, size, target.scales, target.patch_size, gaze_stride), whole=target)


def tiles_along(lengths: tuple[int, ...], tile: int, gaze_stride: int = 1) -> tuple[int, ...]:
    """The number of tiles along each length, of the frame or in patches, when a tile covers `gaze_stride * tile` of it.

    Raises:
        ValueError: if the stride is not a whole number from 1 on, or a smaller one needs no more tiles: then it only
            takes pixels away, and fills the tiles with zeros.
    """
    check_stride(gaze_stride)

    def needed(stride: int) -> tuple[int, ...]:
        return tuple(-(-length // (stride * tile)) for length in lengths)

    enough = next(stride for stride in count(1) if needed(stride) == needed(gaze_stride))
    if enough < gaze_stride:
        raise ValueError(
            f"gaze_stride={gaze_stride} gains nothing here: gaze_stride={enough} needs no more tiles and "
            f"sees more; use at most {enough}"
        )
    return needed(gaze_stride)


def check_stride(gaze_stride: int, tiles: bool = True) -> None:
    """Refuse a stride that is not a whole number from 1 on, or one above 1 where frames are not cut into tiles."""
    if isinstance(gaze_stride, bool) or not isinstance(gaze_stride, int) or gaze_stride < 1:
        raise ValueError(f"gaze_stride must be a whole number of at least 1, got {gaze_stride!r}")
    if gaze_stride > 1 and not tiles:
        raise ValueError(
            f"gaze_stride={gaze_stride} is for gazing in tiles (tiles, or target_scales or "
            "target_patch_size of generate): without them the whole frame is seen in one square"
        )
