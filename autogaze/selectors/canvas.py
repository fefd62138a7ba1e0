"""The canvas: the last known pixels of every place, as patches of several scales are pasted onto it.

A patch of a coarse scale knows its place only blurred: `renditions` are a frame as each scale sees it, at full size.
Within a frame the finest patch pasted at a place wins; a later frame's patch replaces whatever was there. Training's
`autogaze.pretrain.reconstructor.paste` follows the same two rules.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from autogaze.core.grid import PatchGrid

EMPTY = -1  # level of a cell that the current frame has not pasted


def renditions(frames: Tensor, grid: PatchGrid) -> Tensor:
    """Frames as every scale sees them: shrunk to the scale, and each patch stretched over its place again.

    Args:
        frames: (..., 3, height_px, width_px) float.

    Returns:
        (..., scales, 3, height_px, width_px), coarse to fine.
    """
    flat = frames.reshape(-1, *frames.shape[-3:])
    seen = torch.stack([_rendition(flat, grid, k) for k in range(len(grid.scales))], dim=1)
    return seen.reshape(*frames.shape[:-3], len(grid.scales), *frames.shape[-3:])


def paste_levels(canvas: Tensor, seen: Tensor, levels: Tensor) -> Tensor:
    """Paste one frame's patches.

    Args:
        canvas: (B, 3, H, W) float, the last known pixels.
        seen: (B, scales, 3, H, W) renditions of the frame.
        levels: (B, H, W) int64, the scale index pasted at each pixel, `EMPTY` where nothing is.
    """
    index = levels.clamp(min=0)[:, None, None].expand(-1, 1, *canvas.shape[1:])
    return torch.where((levels != EMPTY)[:, None], seen.gather(1, index).squeeze(1), canvas)


def _rendition(frames: Tensor, grid: PatchGrid, scale: int) -> Tensor:
    """(N, 3, H, W) as one scale (by index) sees them. Interpolation does not cross the border of a patch."""
    patch = grid.patch_size
    cell = grid.tile_px / (grid.scales[scale] // patch)  # pixels along the side of a patch
    size = [count * patch for count in grid.sides[scale]]
    whole = [round(count * cell) for count in grid.sides[scale]]
    padded = F.pad(frames, (0, whole[1] - frames.shape[-1], 0, whole[0] - frames.shape[-2]), mode="replicate")
    if size == whole:
        return frames
    small = F.interpolate(padded, size=size, mode="bilinear", antialias=True, align_corners=False)
    rows, columns = (
        _places(length, cell, patch, frames.device) * 2 / (count - 1) - 1
        for length, count in zip(frames.shape[-2:], size, strict=True)
    )
    grid_xy = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
    return F.grid_sample(
        small,
        grid_xy.to(small.dtype).expand(len(small), -1, -1, -1),
        mode="bilinear",
        padding_mode="border",
        align_corners=True,
    )


def _places(length: int, cell: float, patch: int, device: torch.device) -> Tensor:
    """(length,) float64: where each pixel of a line lies on the line of a scale's pixels, clamped to its own patch."""
    place = (torch.arange(length, device=device, dtype=torch.float64) + 0.5) / cell
    index = place.floor()
    return index * patch + ((place - index) * patch - 0.5).clamp(0, patch - 1)
