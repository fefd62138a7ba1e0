"""Paste-and-upsample: what a gaze shows of a clip, put back at its place with no network.

A `Painter` holds the geometry of a grid. It cuts a frame into its scales (`cut`), and paints the scales back on a
canvas, patch by patch: the interpolation never crosses the border of a patch, so that pixels which were not
looked at cannot leak in. With the published grid a patch of scale 32 covers 112 x 112 pixels of the frame.

A place shows the patch that was looked at last; within one frame the finer patch wins. A place that nobody ever
looked at is 0.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from autogaze.core.gaze import Gaze
from autogaze.core.grid import PatchGrid

NEVER = float("inf")  # age of a patch that was never looked at


class Painter(nn.Module):
    """Cuts frames into scales and paints scales back; buffers only, none of them saved.

    `canvas(k)` sizes: "full" is the frame; "small" keeps `small_side[k]` pixels a side of every finest cell, which
    is all the detail that scale k has.
    """

    def __init__(self, grid: PatchGrid) -> None:
        super().__init__()
        self.grid = grid
        self._identity: set[str] = set()  # resampling that changes nothing, such as that of the finest scale
        patch, tile = grid.patch_size, grid.tile_px
        rows, columns = grid.sides[-1]
        self.small_side = tuple(_power_of_two(patch * scale / tile, patch) for scale in grid.scales)
        for k, (k_rows, k_columns) in enumerate(grid.sides):
            cell = tile / (grid.scales[k] // patch)  # side of a patch of this scale, in frame pixels
            finest = tile / (tile // patch)
            axes = (("y", grid.height_px, k_rows, rows), ("x", grid.width_px, k_columns, columns))
            at = {}
            for axis, length, cells, fine in axes:
                places = {
                    "full": torch.arange(length, dtype=torch.float32) + 0.5,
                    "small": (torch.arange(fine * self.small_side[k], dtype=torch.float32) + 0.5)
                    * finest
                    / self.small_side[k],
                }
                self._keep(f"down_{axis}{k}", _down(length, cells, cell, patch))
                for canvas, place in places.items():
                    self._keep(f"{canvas}_{axis}{k}", _up(place, cells, cell, patch))
                    at[canvas, axis] = _cell(place, cells, cell)
            for canvas in ("full", "small"):
                self._keep(f"{canvas}_patch{k}", at[canvas, "y"][:, None] * k_columns + at[canvas, "x"])

    def _keep(self, name: str, value: Tensor) -> None:
        if (
            value.ndim == 2
            and len(value) == value.shape[1]
            and torch.equal(value, torch.eye(len(value), dtype=value.dtype))
        ):
            self._identity.add(name)
        self.register_buffer(name, value, persistent=False)

    def cut(self, frames: Tensor) -> list[Tensor]:
        """Every scale of frames (..., 3, H, W): (..., 3, rows * patch, columns * patch) float32, coarse to fine."""
        with torch.autocast(frames.device.type, enabled=False):
            frames = frames.float()
            return [self._resample(frames, f"down_y{k}", f"down_x{k}") for k in range(len(self.grid.scales))]

    def paint(self, k: int, scale_image: Tensor, canvas: str = "full") -> Tensor:
        """Bring an image of scale k (..., 3, rows * patch, columns * patch) to a canvas, patch by patch."""
        with torch.autocast(scale_image.device.type, enabled=False):
            return self._resample(scale_image, f"{canvas}_y{k}", f"{canvas}_x{k}")

    def _resample(self, image: Tensor, rows: str, columns: str) -> Tensor:
        image = image if rows in self._identity else getattr(self, rows) @ image
        return image if columns in self._identity else image @ getattr(self, columns).mT

    def spread(self, k: int, values: Tensor, canvas: str = "full") -> Tensor:
        """Values of the patches of scale k (..., patches) at every pixel of a canvas (..., height, width)."""
        return values[..., getattr(self, f"{canvas}_patch{k}")]

    def split(self, values: Tensor) -> list[Tensor]:
        """(..., patches_per_frame) as one tensor a scale."""
        return list(values.split(list(self.grid.patches_per_scale), dim=-1))


def last_seen(mask: Tensor) -> Tensor:
    """(B, T, P) int64: the newest frame <= t in which each patch was looked at, -1 before the first time."""
    frames = torch.arange(mask.shape[1], device=mask.device)[:, None]
    return frames.where(mask, -1).cummax(dim=1).values


def ages(seen: Tensor) -> Tensor:
    """(B, T, P) float: frames since each patch was looked at, `NEVER` where it never was; from `last_seen`."""
    age = torch.arange(seen.shape[1], device=seen.device)[:, None] - seen
    return age.float().where(seen >= 0, NEVER)


def remembered(scale_image: Tensor, seen: Tensor, sides: tuple[int, int]) -> Tensor:
    """Every patch as it was when it was last looked at.

    Args:
        scale_image: (B, T, 3, rows * patch, columns * patch), one scale of a clip.
        seen: (B, T, rows * columns) int64, `last_seen` of that scale; -1 gives frame 0 (mask it with `ages`).
    """
    patch = scale_image.shape[-1] // sides[1]
    index = seen.clamp(min=0).unflatten(-1, sides)
    index = index.repeat_interleave(patch, -1).repeat_interleave(patch, -2)[:, :, None]
    return scale_image.gather(1, index.expand_as(scale_image))


def newest(ages_at: Tensor) -> Tensor:
    """The scale that a place shows: the newest, the finer on a tie; from each scale's age there (..., scales, H, W)."""
    youngest, *finer = ages_at.unbind(-3)
    winner = torch.zeros_like(youngest, dtype=torch.int64)
    for k, age in enumerate(finer, start=1):  # 7 times faster on a CPU than argmin over the scales
        winner = winner.masked_fill(age <= youngest, k)
        youngest = torch.minimum(age, youngest)
    return winner


def paste(video: Tensor, gaze: Gaze) -> Tensor:
    """Paste what the gaze has shown so far, at its place, with no network.

    Args:
        video: (B, T, 3, H, W) float, H and W as the grid of the gaze says.
        gaze: of the same clips; may be empty.

    Returns:
        (B, T, 3, H, W) float32; 0 where nothing was ever looked at.
    """
    check_video(video, gaze.grid)
    painter = _painter(gaze.grid, video.device)
    seen = painter.split(last_seen(gaze.patch_mask()))
    images = painter.cut(video)
    at = [painter.spread(k, ages(part)) for k, part in enumerate(seen)]
    winner = newest(torch.stack(at, dim=-3))
    canvas = torch.zeros_like(video, dtype=torch.float32)
    for k, image in enumerate(images):
        shown = (winner == k) & (at[k] != NEVER)
        canvas = painter.paint(k, remembered(image, seen[k], gaze.grid.sides[k])).where(shown[:, :, None], canvas)
    return canvas


def check_video(video: Tensor, grid: PatchGrid) -> None:
    """Raise ValueError unless video is (B, T, 3, H, W) float of the size of the grid."""
    if video.ndim != 5 or video.shape[2:] != (3, grid.height_px, grid.width_px) or not video.is_floating_point():
        raise ValueError(
            f"video must be (B, T, 3, {grid.height_px}, {grid.width_px}) float, "
            f"got {video.dtype} {tuple(video.shape)}; see autogaze.media.preprocess"
        )


@lru_cache(maxsize=8)
def _painter(grid: PatchGrid, device: torch.device) -> Painter:
    return Painter(grid).to(device)


def _power_of_two(least: float, most: int) -> int:
    side = 1
    while side < least - 1e-6:
        side *= 2
    return min(side, most)


def _down(length: int, cells: int, cell: float, patch: int) -> Tensor:
    """(cells * patch, length) weights that shrink a line of pixels (triangle filter, as an antialiased resize)."""
    step = cell / patch
    centre = ((torch.arange(cells * patch, dtype=torch.float64) + 0.5) * step - 0.5).clamp(0, length - 1)
    weight = 1 - (torch.arange(length, dtype=torch.float64) - centre[:, None]).abs() / max(1.0, step)
    weight = weight.clamp(min=0)
    return (weight / weight.sum(1, keepdim=True)).float()


def _cell(places: Tensor, cells: int, cell: float) -> Tensor:
    """The cell of a line that each place (frame pixels) lies in."""
    return (places.double() / cell).floor().long().clamp(max=cells - 1)


def _up(places: Tensor, cells: int, cell: float, patch: int) -> Tensor:
    """(places, cells * patch) weights that read a line of patches at places; bilinear within each patch."""
    row = _cell(places, cells, cell)
    inner = ((places.double() / cell - row) * patch - 0.5).clamp(0, patch - 1)
    low = inner.floor().long().clamp(max=max(0, patch - 2))
    share = inner - low
    weight = torch.zeros(len(places), cells * patch, dtype=torch.float64)
    index = torch.arange(len(places))
    weight[index, row * patch + low] += 1 - share
    if patch > 1:
        weight[index, row * patch + low + 1] += share
    return weight.float()
