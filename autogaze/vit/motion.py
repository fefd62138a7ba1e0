"""Motion of what is remembered: a kept feature belongs to what was seen in a cell, and that may have moved on.

Frames are compared with the picture that was last seen of every cell, at 4 x 4 samples a cell. For each cell the shift
of up to two cells is found whose samples, with half a cell around them, differ least; its feature is then read from
the map at that place, bilinearly. This is block matching, and the warping of deep feature flow (arXiv:1611.07715),
without a network. Where nothing moves, nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SAMPLES = 4  # of a cell, each way
REACH = 8  # samples: the longest shift, two cells
WINDOW = 8  # samples that are compared: the cell and half a cell around it
STAY = 0.97  # a shift must lower the difference to this share of staying
AGE_POWER, DOUBT = 0.25, 0.02  # of looks before and after that are joined; best on validation clips
FRESH = 1e9  # weight of a look of the frame itself, over which the others vanish
STEP_PRICE = 1e-4  # of the pixels' spread, a sample of shift: of two equal shifts the shorter one


@dataclass(frozen=True, eq=False)
class Looks:
    """Samples of every cell as it is, and as it was last seen; made when they are asked for."""

    now: Callable[[], Tensor]  # -> (B * T, cells, 3, SAMPLES, SAMPLES)
    seen: Callable[[Tensor], Tensor]  # of `now` -> the same of each cell's last look
    fresh: Tensor  # (B * T, cells) bool: looked at in this frame


@dataclass(frozen=True, eq=False)
class Side:
    """A look at each cell that a map is read from."""

    shown: Tensor  # (B * T, cells) int64: row of [kept, features], or -1
    looks: Looks
    away: Tensor | None = None  # (B * T, cells) frames from the look to each frame; where it is the only one, None


def thumbnails(video: Tensor, sides: tuple[int, int]) -> Tensor:
    """(B * T, cells, 3, SAMPLES, SAMPLES) float32 samples of the cells of (B, T, 3, H, W) frames."""
    rows, columns = sides
    small = F.adaptive_avg_pool2d(video.flatten(0, 1).float(), (rows * SAMPLES, columns * SAMPLES))
    cells = small.unflatten(3, (columns, SAMPLES)).unflatten(2, (rows, SAMPLES))
    return cells.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)


@torch.no_grad()
def shifts(looks: Looks, sides: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(B * T, rows, columns, 2) float32: how many cells down and right of each cell its content was when seen; and
    (B * T, rows, columns) how much it differs from there all the same, as a share of the pixels' spread."""
    now = looks.now()
    seen = _pictures(looks.seen(now), sides)
    now = _pictures(now, sides)
    spread = now.std().clamp(min=1e-6)
    height, width = now.shape[-2:]
    padded = F.pad(seen, (REACH,) * 4, mode="replicate")
    steps = [(y, x) for y in range(-REACH, REACH + 1) for x in range(-REACH, REACH + 1)]
    best = difference(now, seen) * STAY
    found = torch.zeros(*best.shape, 2, dtype=now.dtype, device=now.device)
    for y, x in steps:
        part = padded[..., REACH + y : REACH + y + height, REACH + x : REACH + x + width]
        cost = difference(now, part) + STEP_PRICE * spread * (y * y + x * x) ** 0.5
        better = cost < best
        best = torch.where(better, cost, best)
        found = torch.where(better[..., None], found.new_tensor((float(y), float(x))), found)
    return found / SAMPLES, best / spread


def difference(now: Tensor, then: Tensor) -> Tensor:
    """(S, rows, columns) mean absolute difference of pictures (S, 3, height, width) around every cell."""
    cells = (now - then).abs().mean(1, keepdim=True)
    return F.avg_pool2d(cells, WINDOW, SAMPLES, (WINDOW - SAMPLES) // 2, count_include_pad=False)[:, 0]


def moved(maps: Tensor, looks: Looks, known: Tensor) -> tuple[Tensor, Tensor]:
    """Maps (S, D, rows, columns) of which cells that were not looked at again follow what was seen in them; and the
    difference of each cell that is left, as `shifts` gives it.

    Args:
        known: (S, rows, columns) bool, cells that were ever seen; others are neither read nor changed.
    """
    rows, columns = maps.shape[-2:]
    shift, left = shifts(looks, (rows, columns))
    still = (shift == 0).all(-1) | looks.fresh.view(known.shape)
    y = torch.arange(rows, dtype=shift.dtype, device=maps.device)[:, None] + 0.5 + shift[..., 0]
    x = torch.arange(columns, dtype=shift.dtype, device=maps.device) + 0.5 + shift[..., 1]
    place = torch.stack([2 * x / columns - 1, 2 * y / rows - 1], -1)
    read = F.grid_sample(maps.float(), place, padding_mode="border", align_corners=False)
    certain = F.grid_sample(known[:, None].float(), place, padding_mode="border", align_corners=False)[:, 0]
    whole = certain > 0.999
    return torch.where((~still & whole & known)[:, None], read.to(maps.dtype), maps), left


def joined(sides: list[Side], read: Callable[[Tensor], Tensor], shape: tuple[int, int]) -> Tensor:
    """The map (S, D, rows, columns) that the looks of all sides give together. A look counts the less the longer ago
    it was, and the less alike it is to what is there; one of the frame itself counts alone.

    Args:
        read: the map of rows (S, cells).
        shape: rows and columns.
    """
    total = weights = torch.zeros((), dtype=torch.float32, device="cpu")  # of no dimension: adds to any device
    for side in sides:
        known = (side.shown >= 0).unflatten(1, shape)
        found, left = moved(read(side.shown), side.looks, known)
        if side.away is None:
            return found
        away = side.away.unflatten(1, shape).float()
        weight = away.clamp(min=1).pow(-AGE_POWER) / (left + DOUBT)
        weight = weight.masked_fill(away == 0, FRESH).masked_fill(~known, 1 / FRESH)[:, None]
        total, weights = total + weight * found, weights + weight
    return (total / weights).to(found.dtype)


def _pictures(cells: Tensor, sides: tuple[int, int]) -> Tensor:
    """(S, cells, 3, SAMPLES, SAMPLES) -> (S, 3, height, width)."""
    return cells.unflatten(1, sides).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
