"""The picture that attention with memory sees: which row shows each cell of each frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from autogaze.core.gaze import Gaze
from autogaze.vit.memory import Memory, around, distances, kept_slots, newest, row_of_patch, shown_in_frame
from autogaze.vit.motion import Looks, Side, thumbnails
from autogaze.vit.packing import Attention, PackedIds


@dataclass(eq=False)
class Picture:
    """The patches that show each cell of each frame, with memory."""

    shown: Tensor  # (B * T, cells) int64: row of [slots of a stream's memory, patches]
    newest_slot: Tensor  # (B * P,) int64: packed row of the newest token of every patch of the grid, or -1
    frames: int  # T
    of_row: Tensor  # (slots + N,) int64: frame of each row, negative before this call
    past: Tensor | None = None  # of whole clips, as `shown`: the last look at each cell up to a frame, and
    ahead: Tensor | None = None  # the next one from it on

    @classmethod
    def of(cls, packed: PackedIds, gaze: Gaze, attention: Attention, memory: Memory | None) -> Picture:
        """The row that shows each cell of each frame; in a stream rows are counted behind the memory's slots."""
        (clips, frames, _), patches = gaze.ids.shape, gaze.grid.patches_per_frame
        table = row_of_patch(packed.ids, packed.clip, packed.frame, packed.offsets, frames, patches)
        newest_slot = table.unflatten(0, (clips, frames)).amax(1).flatten()
        shown = shown_in_frame(table, gaze.grid)
        of_row = packed.frame
        if attention == "nearest":
            if len(of_row) == 0:
                return cls(shown, newest_slot, frames, of_row)
            past, ahead = around(shown, frames, len(of_row))
            waited, awaited = distances(past, ahead, frames, of_row)
            return cls(torch.where(awaited < waited, ahead, past), newest_slot, frames, of_row, past, ahead)
        if memory is None:
            return cls(newest(shown, frames), newest_slot, frames, of_row)
        slots = clips * patches
        shown = (shown + slots).where(shown >= 0, shown)
        of_row = torch.cat([memory.looked - memory.frames, of_row])
        return cls(newest(shown, frames, memory.shown), newest_slot, frames, of_row)

    def ages(self, rows: Tensor) -> Tensor:
        """(B * T, L) int64: how many frames before its frame each row was looked at."""
        now = (torch.arange(len(rows), device=rows.device) % self.frames)[:, None]
        if len(self.of_row) == 0:
            return torch.zeros_like(rows)
        return (now - self.of_row[rows]).abs()

    def read(self, video: Tensor, sides: tuple[int, int], memory: Memory | None) -> Callable[[], list[Side]]:
        """What a dense map is read from, once it is asked for: the look of each cell, or those before and after."""
        if self.past is None or self.ahead is None:
            side = Side(self.shown, self.looks(video, sides, memory))
            return lambda: [side]
        return lambda: self.before_and_after(video, sides)

    def before_and_after(self, video: Tensor, sides: tuple[int, int]) -> list[Side]:
        """The looks at each cell before and after a frame."""
        assert self.past is not None and self.ahead is not None
        away = distances(self.past, self.ahead, self.frames, self.of_row)
        return [
            Side(rows, replace(self, shown=rows).looks(video, sides, None), frames)
            for rows, frames in zip((self.past, self.ahead), away, strict=True)
        ]

    def looks(self, video: Tensor, sides: tuple[int, int], memory: Memory | None) -> Looks:
        """Each cell as it is and as it was seen; a stream's memory takes it in at once, a clip when it is asked."""
        clips, cells = len(video), self.shown.shape[1]
        frame = self.of_row[self.shown.clamp(min=0)] if len(self.of_row) else torch.zeros_like(self.shown)
        now = (torch.arange(len(self.shown), device=frame.device) % self.frames)[:, None]
        first = torch.arange(len(self.shown), device=frame.device)[:, None] - now
        cell = torch.arange(cells, device=frame.device)

        def seen(samples: Tensor, before: Tensor | None = None) -> Tensor:
            found = samples[first + frame.clamp(min=0), cell]
            if before is None:
                return found
            older = before.repeat_interleave(self.frames, 0)
            return torch.where((frame < 0)[..., None, None, None], older, found)

        fresh = (frame == now) & (self.shown >= 0)
        if memory is None:
            return Looks(lambda: thumbnails(video, sides), seen, fresh)
        samples = thumbnails(video, sides)
        before = samples.unflatten(0, (clips, -1))[:, 0] if memory.samples is None else memory.samples
        found = seen(samples, before)
        memory.samples = found.unflatten(0, (clips, -1))[:, -1]
        return Looks(lambda: samples, lambda _: found, fresh)

    def remember(self, memory: Memory, features: Tensor, kept: Tensor, keys: list[tuple[Tensor, Tensor]]) -> None:
        """Bring a stream's memory up to date with what was encoded."""
        memory.features, memory.keys = kept_slots(features, kept, self.newest_slot), keys
        clips, slots = len(memory.shown), len(self.newest_slot)
        last = self.shown.unflatten(0, (clips, -1))[:, -1]
        slot_of_row = torch.full((len(features) + 1,), -1, device=last.device)
        slot = torch.arange(slots, device=last.device)
        slot_of_row[self.newest_slot.where(self.newest_slot >= 0, len(features))] = slot
        taken = slot_of_row[(last - slots).clamp(min=0, max=len(features))]
        memory.shown = taken.where(last >= slots, last)
        if len(features):
            looked = self.of_row[-len(features) :][self.newest_slot.clamp(min=0)] + memory.frames
            memory.looked = looked.where(self.newest_slot >= 0, memory.looked)
        memory.frames += self.frames
