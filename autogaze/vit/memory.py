"""Memory: what a ViT saw of every cell when it last looked there.

With `attention="memory"` a frame's tokens see its class token and the newest token of every cell of the finest scale,
from this frame or an earlier one: new tokens are computed with the whole picture around them, and only they are
computed. With every patch of the finest scale chosen in every frame it is the dense ViT; where nothing moves, so is
a frame of which nothing is chosen, but for rounding.

A patch takes over the cells whose centre it covers (of a frame's own patches the finest). Packed rows run through a
clip in time, so the newest row of a cell is the largest one up to a frame: a running maximum.

`attention="nearest"` does the same for whole clips with the token that is nearest in time, also a later one. Its
`dense()` reads a cell between the looks before and after a frame.

`Memory` keeps that between calls, for streams: keys and values of every block, one slot a patch of the grid. It does
not grow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from autogaze.core.grid import PatchGrid

NOTHING = -1  # of a cell that no patch has shown yet


@dataclass(eq=False)
class Memory:
    """Memory between the calls of a stream: one slot a patch of the grid and clip.

    Bytes: blocks x clips x patches x 2 x width x bytes of a number. ViT-S with 196 patches in bf16: 3.6 MB a clip.
    """

    keys: list[tuple[Tensor, Tensor]]  # of each attention, k and v (B * P, heads, head size)
    features: Tensor | None  # (B * P, D)
    shown: Tensor  # (B, cells) int64: slot of the patch that shows each cell, or NOTHING
    looked: Tensor  # (B * P,) int64: frame in which each slot was last filled
    samples: Tensor | None = None  # (B, cells, 3, ...) what was seen of each cell (`autogaze.vit.motion`)
    frames: int = 0  # of the stream so far

    @classmethod
    def empty(cls, grid: PatchGrid, clips: int, device: torch.device | str) -> Memory:
        """A memory of nothing."""
        rows, columns = grid.sides[-1]
        slots = torch.zeros(clips * grid.patches_per_frame, dtype=torch.int64, device=device)
        return cls([], None, torch.full((clips, rows * columns), NOTHING, device=device), slots)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def cells_to_patches(grid: PatchGrid, device: torch.device) -> list[Tensor]:
    """For every scale (rows, columns): the patch, counted in the scale, that covers each finest cell's centre."""
    result = []
    rows, columns = grid.sides[-1]
    finest = grid.scales[-1] // grid.patch_size
    for k, (height, width) in enumerate(grid.sides):
        share = (grid.scales[k] // grid.patch_size) / finest
        row = ((torch.arange(rows, dtype=torch.float32, device="cpu") + 0.5) * share).long().clamp(max=height - 1)
        column = ((torch.arange(columns, dtype=torch.float32, device="cpu") + 0.5) * share).long().clamp(max=width - 1)
        result.append((row[:, None] * width + column).to(device))
    return result


def row_of_patch(ids: Tensor, clip: Tensor, frame: Tensor, offsets: Tensor, frames: int, patches: int) -> Tensor:
    """(B * T, patches) int64: the packed row of every patch of a frame, NOTHING where it was not chosen."""
    count = len(offsets) - 1
    row = torch.arange(len(ids), device=ids.device)
    place = (clip * frames + frame) * patches + ids
    place = place.where(row < offsets[-1], count * patches)  # filler
    table = torch.full((count * patches + 1,), NOTHING, device=row.device)
    return table.scatter_(0, place, row)[:-1].view(count, patches)


def shown_in_frame(table: Tensor, grid: PatchGrid) -> Tensor:
    """(B * T, cells) int64: the row of the finest patch of the frame that covers each cell's centre, or NOTHING.

    Args:
        table: as `row_of_patch` gives it.
    """
    rows = table.new_full((len(table), *grid.sides[-1]), NOTHING)
    for start, cells in zip(grid.offsets, cells_to_patches(grid, table.device), strict=True):
        found = table[:, start + cells]
        rows = torch.where(found >= 0, found, rows)
    return rows.flatten(1)


def newest(shown: Tensor, frames: int, kept: Tensor | None = None) -> Tensor:
    """(B * T, cells) int64: the newest row that shows each cell, in this frame or an earlier one.

    Args:
        shown: (B * T, cells), as `shown_in_frame` gives it.
        kept: (B, cells) rows from before the clip, all smaller than the clip's own; NOTHING where there is none.
    """
    of_clip = shown.unflatten(0, (-1, frames))
    if kept is not None:
        of_clip = torch.cat([torch.maximum(of_clip[:, :1], kept[:, None]), of_clip[:, 1:]], dim=1)
    return of_clip.cummax(1).values.flatten(0, 1)


def around(shown: Tensor, frames: int, rows: int) -> tuple[Tensor, Tensor]:
    """(B * T, cells) int64 each: the newest row that shows each cell up to a frame, and the first from it on.

    Args:
        shown: (B * T, cells), as `shown_in_frame` gives it.
        rows: of all frames.
    """
    ahead = shown.where(shown >= 0, rows).unflatten(0, (-1, frames)).flip(1).cummin(1).values.flip(1).flatten(0, 1)
    return newest(shown, frames), ahead.where(ahead < rows, NOTHING)


def distances(past: Tensor, ahead: Tensor, frames: int, of_row: Tensor) -> tuple[Tensor, Tensor]:
    """(B * T, cells) int64 each: frames from the look before a frame to it, and from it to the one after; where there
    is none, more than there are.

    Args:
        past, ahead: as `around` gives them.
        of_row: (N,) int64, frame of each row, N >= 1.
    """
    now = (torch.arange(len(past), device=past.device) % frames)[:, None]
    none = 2 * frames
    waited = (now - of_row[past.clamp(min=0)]).where(past >= 0, none)
    return waited, (of_row[ahead.clamp(min=0)] - now).where(ahead >= 0, none)


def each_once(rows: Tensor, scales: int) -> tuple[Tensor, Tensor]:
    """Rows (S, L) of which some are NOTHING and, with several scales, some stand for several cells.

    Returns:
        (S, L) with every row once, in front, and (S,) how many they are.
    """
    rows = rows.sort(-1, descending=True).values
    if scales > 1:
        again = torch.zeros_like(rows, dtype=torch.bool)
        again[:, 1:] = rows[:, 1:] == rows[:, :-1]
        rows = rows.masked_fill(again, NOTHING).sort(-1, descending=True).values
    return rows.clamp(min=0), (rows >= 0).sum(-1)


class Recall:
    """Attention of a stream's frames over what it remembers; takes in every attention's new keys and values.

    Args:
        memory: what is known so far; the new state is `kept`, once every attention was called.
        attend: attention of packed queries over keys in front of which the memory's stand.
        newest_slot: (B * P,) int64, packed row of the newest token of every slot, or NOTHING.
    """

    def __init__(self, memory: Memory, attend: Callable[..., Tensor], newest_slot: Tensor) -> None:
        self.memory, self.attend, self.newest_slot = memory, attend, newest_slot
        self.kept: list[tuple[Tensor, Tensor]] = []

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
        number = len(self.kept)
        old = self.memory.keys[number] if number < len(self.memory.keys) else (None, None)
        both = [self._before(new, kept) for new, kept in zip((k, v), old, strict=True)]
        self.kept.append((kept_slots(k, both[0], self.newest_slot), kept_slots(v, both[1], self.newest_slot)))
        return self.attend(q, *(torch.cat([kept, new]) for kept, new in zip(both, (k, v), strict=True)), scale=scale)

    def _before(self, new: Tensor, kept: Tensor | None) -> Tensor:
        return new.new_zeros(len(self.newest_slot), *new.shape[1:]) if kept is None else kept


def kept_slots(new: Tensor, kept: Tensor, newest_slot: Tensor) -> Tensor:
    """Contents of slots after a call: of packed rows `new` the newest of each slot, or what was `kept` where there is
    none."""
    if len(new) == 0:
        return kept
    taken = new[newest_slot.clamp(min=0)]
    return taken.where((newest_slot >= 0).view(-1, *[1] * (new.ndim - 1)), kept).detach()
