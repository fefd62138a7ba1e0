"""Packed tokens: every chosen patch once, nothing padded, and the bounds that attention stays in.

Packed rows run clip after clip, frame after frame. A *run* is a stretch of rows that see the same keys: a frame, or a
whole clip for `attention="joint"`. Class and register tokens stand in front of their run. With runs of 3 and 2 patches
and 1 class token the rows are c p p p c p p, `runs` = (0, 4, 7), `patch_rows` = (1, 2, 3, 5, 6).

With a capacity, shapes do not depend on the data: packed rows beyond the last chosen patch are filler that belongs to
no run. That form has no host sync and can be captured in a CUDA graph.

Where every slot of a gaze is chosen, and the host knows it, runs are *regular*: all have the same length, so packed
rows are a plain batch of sequences, which needs neither the variable-length kernel nor a mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from autogaze.core.gaze import Gaze
from autogaze.vit.memory import each_once

Attention = Literal["frame", "block_causal", "joint", "memory", "nearest"]
ATTENTION: tuple[Attention, ...] = get_args(Attention)
REMEMBERS = ("memory", "nearest")


@dataclass(frozen=True, eq=False)
class PackedIds:
    """The chosen patches of a gaze; like `Gaze.packed`, but with room for filler at the end."""

    ids: Tensor  # (N,) int64, local to their frame; 0 in filler
    clip: Tensor  # (N,) int64; 0 in filler
    frame: Tensor  # (N,) int64; 0 in filler
    offsets: Tensor  # (B * T + 1,) int32: frame t of clip b is rows [offsets[b * T + t], offsets[b * T + t + 1])
    whole: bool = False  # the host knows that every slot was chosen: K rows a frame, no filler

    @classmethod
    def of(cls, gaze: Gaze, capacity: int | None = None) -> PackedIds:
        """Pack a gaze.

        Args:
            gaze: (B, T, K).
            capacity: N, at least the number of chosen patches (the caller's word: it is not checked here, since that
                needs a host sync); None: exactly that number, which costs one host sync on a GPU.
        """
        if capacity is None:
            packed = gaze.packed()
            whole = 0 < gaze.ids.numel() == len(packed.ids)
            return cls(packed.ids, packed.clip, packed.frame, packed.frame_offsets, whole)
        if gaze.ids.shape[-1] == 0:  # no slot to point filler at
            gaze = replace(
                gaze,
                ids=gaze.ids.new_zeros(*gaze.ids.shape[:2], 1),
                task_loss=None,
                chosen=gaze.chosen.new_zeros(*gaze.ids.shape[:2], 1),
            )
        _, frames, slots = gaze.ids.shape
        chosen = gaze.chosen.flatten()
        place = chosen.cumsum(0) - 1
        spill = torch.full_like(place, capacity)
        slot = place.new_zeros(capacity + 1)
        slot.scatter_(
            0, torch.where(chosen & (place < capacity), place, spill), torch.arange(len(chosen), device=chosen.device)
        )
        ends = gaze.counts.flatten().cumsum(0)
        filler = torch.arange(capacity, device=chosen.device) >= ends[-1]
        slot = slot[:capacity].masked_fill(filler, 0)
        ids = gaze.ids.flatten()[slot].masked_fill(filler, 0)
        offsets = torch.cat([ends.new_zeros(1), ends]).to(torch.int32)
        return cls(ids, slot // (frames * slots), slot // slots % frames, offsets)

    @classmethod
    def of_whole(cls, gaze: Gaze) -> PackedIds:
        """Pack a gaze of which every slot is chosen, by the caller's word: `chosen` is not read. No host sync."""
        clips, frames, slots = gaze.ids.shape
        place = torch.arange(gaze.ids.numel(), device=gaze.device)
        offsets = slots * torch.arange(clips * frames + 1, device=gaze.device, dtype=torch.int32)
        ids = gaze.ids.flatten().clone()  # not a view of a buffer that the next gaze is loaded into
        return cls(ids, place // (frames * slots), place // slots % frames, offsets, whole=True)


@dataclass(frozen=True, eq=False)
class Layout:
    """Places of tokens in packed rows, and which rows see which."""

    order: (
        Tensor | None
    )  # (M,) int64: row i is element order[i] of [prefix tokens of all runs, patches]; None: no prefix
    patch_rows: Tensor  # (N,) int64
    prefix_rows: Tensor  # (S, R) int64
    runs: Tensor  # (S + 1,) int32: run s is rows [runs[s], runs[s + 1])
    groups: Tensor  # (G + 1,) int32: what block-causal attention stays inside; equal to `runs` otherwise
    longest_run: int  # upper bounds, known without asking the device
    longest_group: int
    regular: bool = False  # every run has `longest_run` rows and no row is filler
    keys: Tensor | None = None  # (S, Lk) int64 with memory: the key rows of every run, the first `key_counts` of them
    key_counts: Tensor | None = None  # (S,) int64
    key_ages: Tensor | None = None  # (S, Lk) int64: frames since each key was looked at

    @property
    def count(self) -> int:
        """M, with filler."""
        return self.prefix_rows.numel() + len(self.patch_rows)

    @property
    def block_causal(self) -> bool:
        return len(self.groups) != len(self.runs)

    @classmethod
    def of(cls, packed: PackedIds, attention: Attention, shape: tuple[int, int, int], prefix: int) -> Layout:
        """Lay out packed patches.

        Args:
            attention: "frame", "block_causal" or "joint".
            shape: (B, T, K) of the gaze.
            prefix: R, class and register tokens of a run: a frame's, or a clip's for "joint".
        """
        frames = shape[1]
        patches = packed.offsets[::frames].contiguous() if attention == "joint" else packed.offsets
        runs = patches + prefix * torch.arange(len(patches), device=patches.device, dtype=torch.int32)
        longest = longest_run(attention, shape, prefix)
        groups = runs[::frames] if attention == "block_causal" else runs
        longest_group = longest * frames if attention == "block_causal" else longest
        order, patch_rows, prefix_rows = _interleave(patches.long(), len(packed.ids), prefix)
        regular = packed.whole and attention not in ("block_causal", *REMEMBERS)
        return cls(order, patch_rows, prefix_rows, runs, groups.contiguous(), longest, longest_group, regular)

    def with_keys(
        self, shown: Tensor, scales: int, kept: int = 0, ages: Callable[[Tensor], Tensor] | None = None
    ) -> Layout:
        """The layout of attention with memory: every frame sees its prefix tokens and what shows its cells.

        Args:
            shown: (B * T, cells) int64: among `kept` slots and the packed patches behind them, what shows each cell.
            scales: of the grid.
            kept: slots of a memory, whose keys are put in front of the packed rows'.
            ages: of such rows (S, L), in frames; None where nobody asks for them.
        """
        rows, counts = each_once(shown, scales)
        key_ages = None if ages is None else F.pad(ages(rows), (self.prefix_rows.shape[1], 0))
        if len(self.patch_rows):  # else all that is shown is in the memory
            packed = kept + self.patch_rows[(rows - kept).clamp(min=0, max=len(self.patch_rows) - 1)]
            rows = packed.where(rows >= kept, rows)
        keys = torch.cat([kept + self.prefix_rows, rows], dim=1)
        return replace(self, keys=keys, key_counts=counts + self.prefix_rows.shape[1], key_ages=key_ages)

    def join(self, prefix: Tensor | None, patches: Tensor) -> Tensor:
        """(R, ...) prefix tokens of every run and (N, ...) patches -> (M, ...) packed rows."""
        if self.order is None or prefix is None:
            return patches
        prefix = prefix.expand(len(self.prefix_rows), *prefix.shape).flatten(0, 1)
        return torch.cat([prefix, patches])[self.order]

    def images(self, rows: Tensor) -> Tensor:
        """(M, ...) packed rows -> (S, L, ...) one image a run, zeros behind its last row: what the dense model sees."""
        index, valid = padded_rows(self.runs, self.longest_run, len(rows))
        return rows[index] * valid.view(*valid.shape, *[1] * (rows.ndim - 1))

    def rows(self, images: Tensor, count: int) -> Tensor:
        """The `count` packed rows of images (S, L, ...)."""
        row = torch.arange(count, device=images.device)
        run = torch.bucketize(row, self.runs[1:], right=True).clamp(max=len(self.runs) - 2)
        return images[run, (row - self.runs[run]).clamp(max=images.shape[1] - 1)]

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(M, D) packed rows -> (S, R, D) prefix tokens and (N, D) patches."""
        if self.order is None:
            return rows.new_zeros(*self.prefix_rows.shape, rows.shape[-1]), rows
        return rows[self.prefix_rows], rows[self.patch_rows]


def longest_run(attention: Attention, shape: tuple[int, int, int], prefix: int) -> int:
    """Rows of a run, with its prefix tokens, if every slot of a (B, T, K) gaze is chosen."""
    _, frames, slots = shape
    return (slots * frames if attention == "joint" else slots) + prefix


def _interleave(offsets: Tensor, patches: int, prefix: int) -> tuple[Tensor | None, Tensor, Tensor]:
    """`order`, `patch_rows` and `prefix_rows` of a layout; filler goes behind the last run."""
    count, device = len(offsets) - 1, offsets.device
    place = torch.arange(patches, device=device)
    prefix_rows = (offsets[:-1] + prefix * torch.arange(count, device=device))[:, None] + torch.arange(
        prefix, device=device
    )
    if prefix == 0:
        return None, place, prefix_rows
    run = torch.bucketize(place, offsets[1:], right=True).clamp(max=count - 1)
    patch_rows = place + prefix * (run + 1)
    order = torch.empty(count * prefix + patches, dtype=torch.int64, device=device)
    order[prefix_rows.flatten()] = torch.arange(count * prefix, device=device)
    order[patch_rows] = place + count * prefix
    return order, patch_rows, prefix_rows


def padded_rows(offsets: Tensor, longest: int, count: int) -> tuple[Tensor, Tensor]:
    """Rows (S, L) of every stretch, padded, and which of them are real."""
    if offsets.device.type == "cpu" and not torch.compiler.is_compiling():  # asking is free; the bound may be far off
        longest = max(1, int(offsets.diff().max()))
    rows = offsets[:-1, None].long() + torch.arange(longest, device=offsets.device)
    return rows.clamp(max=max(0, count - 1)), rows < offsets[1:, None]
