"""Units: what can be left out of a video in front of a tower, and which of them a gaze keeps.

A *unit* is the smallest piece that becomes one visual token: 2 x 2 patches of two frames in Qwen's towers. A *step* is
the frames that a unit spans: one frame or a pair. 64 frames of 448 x 448 pixels are 32 steps of 14 x 14 units for
Qwen3-VL.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from autogaze.core.gaze import Gaze


@dataclass(frozen=True)
class UnitGrid:
    """The number of units of a video."""

    steps: int
    rows: int
    columns: int

    @property
    def per_step(self) -> int:
        return self.rows * self.columns

    def __len__(self) -> int:
        return self.steps * self.per_step


@dataclass(frozen=True, eq=False)
class Choice:
    """In which order a gaze takes the units of each step, and what it predicts to be lost without each."""

    order: Tensor  # (steps, per_step) int64: place of every unit in its step, a permutation
    loss: Tensor  # (steps, per_step) float: predicted loss before the unit is taken; -inf where the gaze stopped

    @classmethod
    def of(cls, gaze: Gaze, grid: UnitGrid, tiles: tuple[int, int] = (1, 1)) -> Choice:
        """Read a gaze of one video.

        A patch stands for the units under it; of those the one nearest to the middle of the frame goes first. Units
        that no patch covers come last, in the same order.

        Args:
            gaze: (rows * columns of tiles, steps, K), the tiles of the video row by row.
            grid: the video's units.
            tiles: rows and columns.
        """
        when, loss = cells_of(gaze)
        when, loss = (_join(part, tiles) for part in (when, loss))
        when, loss = (_to_units(part, (grid.rows, grid.columns)) for part in (-when, loss))
        when = -when
        chosen = when.isfinite()
        rank = torch.where(chosen, when, when.new_tensor(1e6)) + _off_centre(grid, when.device)
        order = rank.argsort(dim=-1, stable=True).argsort(dim=-1)
        loss = torch.where(chosen, loss, -torch.inf)
        return cls(order, loss.where(order > 0, torch.inf))  # the first is taken whatever is predicted


def cells_of(gaze: Gaze) -> tuple[Tensor, Tensor]:
    """Slot of the first look at each cell of the finest scale, inf for never, and the loss predicted before that.

    Returns:
        two of (B, T, rows, columns) float.
    """
    rows, columns = gaze.grid.sides[-1]
    clips, steps, slots = gaze.ids.shape
    cover = gaze.grid.cover().flatten(1).to(gaze.device)  # (patches, cells)
    slot = torch.arange(slots, device=gaze.device, dtype=torch.float32).expand(gaze.ids.shape)
    when = torch.full((clips, steps, gaze.grid.patches_per_frame + 1), torch.inf, device=gaze.device)
    ids = gaze.ids.where(gaze.chosen, gaze.grid.patches_per_frame)
    when = when.scatter(-1, ids, slot)[..., :-1]  # (B, T, patches)
    first = slot.new_full((clips, steps, rows * columns), torch.inf)
    for scale, (start, count) in enumerate(zip(gaze.grid.offsets, gaze.grid.patches_per_scale, strict=True)):
        part = when[..., start : start + count]
        if scale == len(gaze.grid.scales) - 1:
            covered = part
        else:  # every cell is covered by one patch of a scale
            covered = part[..., cover[start : start + count].float().argmax(0)]
        first = torch.minimum(first, covered)
    loss = torch.zeros_like(first)
    if gaze.task_loss is not None and slots:
        falling = gaze.task_loss.nan_to_num(-torch.inf).cummin(-1).values
        loss = falling.gather(-1, first.nan_to_num(posinf=0).long().clamp(max=slots - 1))
    loss = loss.masked_fill(first.isinf(), -torch.inf)
    return first.unflatten(-1, (rows, columns)), loss.unflatten(-1, (rows, columns))


def keep_units(
    choices: Sequence[Choice], gazing_ratio: float | None, max_units: int | None = None, first_step: bool = True
) -> list[Tensor]:
    """Choose the units of one prompt's videos that are kept.

    Every step keeps one unit at least. A step takes units in the gaze's order until its share is spent or the gaze
    stops. If all of it is more than `max_units`, a requirement common to the whole prompt is raised until it fits: the
    units whose predicted loss is the highest stay, wherever they are.

    Args:
        choices: of every video.
        gazing_ratio: largest share of a step's units; None sets no limit.
        max_units: most units of all videos together.
        first_step: keep the first step of every video in full, as far as `max_units` allows.

    Returns:
        (steps, per_step) bool of every video.

    Raises:
        ValueError: if there are more steps than `max_units`.
    """
    kept = []
    for choice in choices:
        per_step = choice.order.shape[1]
        share = per_step if gazing_ratio is None else max(1, int(gazing_ratio * per_step))
        keep = (choice.order < share) & (choice.loss > -torch.inf)
        if first_step:
            keep[:1] = True
        kept.append(keep)
    if max_units is None or sum(int(keep.sum()) for keep in kept) <= max_units:
        return kept
    steps = sum(len(keep) for keep in kept)
    if steps > max_units:
        raise ValueError(
            f"max_visual_tokens={max_units} is less than one token for each of {steps} frames (or frame pairs); "
            "ask for more tokens or read fewer frames"
        )
    return _fit(choices, kept, max_units, first_step)


def _fit(choices: Sequence[Choice], kept: list[Tensor], max_units: int, first_step: bool) -> list[Tensor]:
    """The `max_units` kept units of the highest loss; ties in the gaze's order."""
    worth, place = [], []
    for choice in choices:
        loss = choice.loss.clone()
        if first_step:  # before all but the first unit of every step
            loss[:1] = torch.finfo(loss.dtype).max
            loss[:1][choice.order[:1] == 0] = torch.inf
        worth.append(loss.flatten())
        place.append(choice.order.flatten())
    flat = torch.cat([keep.flatten() for keep in kept])
    values = torch.cat(worth).where(flat, -torch.inf)
    by_place = torch.cat(place).argsort(stable=True)
    best = by_place[values[by_place].argsort(descending=True, stable=True)][:max_units]
    mask = torch.zeros_like(flat)
    mask[best] = True
    parts = mask.split([keep.numel() for keep in kept])
    return [part.view_as(keep) for part, keep in zip(parts, kept, strict=True)]


def unit_patches(rows: int, columns: int, merge: int) -> Tensor:
    """(units, merge * merge) patch numbers of every unit of a frame of so many units, both row by row."""
    patches = torch.arange(rows * columns * merge**2).view(rows, merge, columns, merge)
    return patches.transpose(1, 2).reshape(-1, merge * merge)


def tiles_for(grid: UnitGrid, cells: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of gaze tiles for a grid of units: as few as leave a unit at least about a cell."""
    return max(1, round(grid.rows / cells[0])), max(1, round(grid.columns / cells[1]))


def cut_tiles(frames: Tensor, tiles: tuple[int, int]) -> Tensor:
    """(T, C, H, W) -> (rows * columns, T, C, H / rows, W / columns)."""
    parts = frames.unflatten(-1, (tiles[1], -1)).unflatten(-3, (tiles[0], -1))  # (T, C, rows, y, columns, x)
    return parts.permute(2, 4, 0, 1, 3, 5).flatten(0, 1)


def _join(cells: Tensor, tiles: tuple[int, int]) -> Tensor:
    """(tiles, T, rows, columns) -> (T, all rows, all columns)."""
    parts = cells.unflatten(0, tiles)  # (tile rows, tile columns, T, rows, columns)
    return parts.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)


def _to_units(cells: Tensor, size: tuple[int, int]) -> Tensor:
    """(T, rows, columns) of cells -> (T, units): the largest of the cells that touch a unit."""
    if cells.shape[1:] != size:
        cells = F.adaptive_max_pool2d(cells[:, None], size)[:, 0]
    return cells.flatten(1)


def _off_centre(grid: UnitGrid, device: torch.device) -> Tensor:
    """(per_step,) float below 1: distance from the middle of the frame."""
    y, x = (torch.linspace(-1, 1, n, device=device) if n > 1 else torch.zeros(1, device=device) for n in
            (grid.rows, grid.columns))  # fmt: skip
    return ((y[:, None] ** 2 + x[None] ** 2) / 3).flatten()
