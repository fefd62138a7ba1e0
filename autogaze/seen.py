"""What the decoder is told about places it has looked at before: how they differ from then, and how finely it looked.

A frame's visual tokens know the frame and the two before it, not what was looked at in them. The decoder could only
gather that from the ids in its cache, one place at a time, and in practice looked at the same places again and again
(docs/log.md). Here every place carries a trace, a linear view of its own pixels. The trace of the last look is held,
and each visual token is given the difference between the frame's trace and the held one, and a learned embedding of
the scale of that look. Nothing is encoded again, and a stream's memory is one trace a place.

Not in arXiv:2603.12254, nor in the shipped weights; published checkpoints have none of it and decode as they did. What
counts as the last look is what reconstruction counts as known (`autogaze.selectors.canvas`): within a frame the finest
patch of a place, and a later frame's patch whatever was there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autogaze.grid import PatchGrid

NEVER = 0  # level of a place that nobody has looked at; scale k of the grid is level k + 1


class FrameTokens(NamedTuple):
    """What the encoder says of some frames."""

    visual: Tensor  # (B, T, N, width) visual tokens with their positions
    trace: Tensor | None  # (B, T, N, width), of each place in each frame; None: the model has no `SeenMemory`
    frames: Tensor | None  # (B, T, 1, H, W), grey, as they were encoded; None: the model has no `PasteError`

    def frame(self, t: int) -> FrameTokens:
        """Of one frame: (B, N, width)."""
        visual, *others = (None if part is None else part[:, t] for part in self)
        assert visual is not None
        return FrameTokens(visual, *others)


@dataclass(frozen=True, eq=False)
class Seen:
    """What is known of every place of a batch of clips."""

    held: Tensor  # (B, N, width) trace of the last look, zero before the first
    level: Tensor  # (B, N) int64, `NEVER` or one more than the index of the scale of the last look


class SeenMemory(nn.Module):
    """Tells visual tokens what was seen of their places.

    Args:
        grid: a square grid.
        side: visual tokens in a row of a frame.
        width: of tokens, and of the patch embeddings that traces are made of.
    """

    def __init__(self, grid: PatchGrid, side: int, width: int) -> None:
        super().__init__()
        self.patches = grid.patches_per_frame
        self.trace_proj = nn.Linear(width, width, bias=False)
        self.level_embed = nn.Embedding(len(grid.scales) + 1, width)
        self.patch_at: Tensor
        self.register_buffer("patch_at", patch_at(grid, side), persistent=False)

    def open(self, tokens: FrameTokens) -> Seen:
        """Nothing seen yet, for clips that begin with a frame (B, N, width)."""
        assert tokens.trace is not None
        return Seen(torch.zeros_like(tokens.trace),
                    torch.zeros(tokens.trace.shape[:2], dtype=torch.int64, device=tokens.trace.device))

    def tell(self, tokens: FrameTokens, seen: Seen) -> Tensor:
        """Visual tokens (..., N, width) that know what was seen of their places."""
        assert tokens.trace is not None
        told = (tokens.trace - seen.held) + self.level_embed(seen.level).to(tokens.trace.dtype)
        return tokens.visual + told.to(tokens.visual.dtype)

    def look(self, seen: Seen, tokens: FrameTokens, ids: Tensor, chosen: Tensor) -> Seen:
        """What is known after a look at a frame (B, N, width): ids and chosen (B, K)."""
        assert tokens.trace is not None
        level = self.levels(ids, chosen)
        looked = level != NEVER
        return Seen(torch.where(looked[..., None], tokens.trace, seen.held), torch.where(looked, level, seen.level))

    def along(self, tokens: FrameTokens, ids: Tensor, chosen: Tensor) -> Tensor:
        """`tell` for all frames of clips whose gazes (B, T, K) are known: (B, T, N, width)."""
        assert tokens.trace is not None
        levels = self.levels(ids, chosen)  # (B, T, N)
        frame = torch.arange(levels.shape[1], device=levels.device)[:, None]
        last = frame.where(levels != NEVER, -1).cummax(dim=1).values
        before = F.pad(last, (0, 0, 1, 0), value=-1)[:, :-1]  # the frame of the last look before each frame
        known, at = before >= 0, before.clamp(min=0)
        held = tokens.trace.gather(1, at[..., None].expand_as(tokens.trace)) * known[..., None]
        return self.tell(tokens, Seen(held, levels.gather(1, at).where(known, NEVER)))

    def levels(self, ids: Tensor, chosen: Tensor) -> Tensor:
        """(..., N) int64: the finest level at which ids (..., K) cover each place, `NEVER` where none does."""
        mask = torch.zeros(*ids.shape[:-1], self.patches, dtype=torch.int8, device=ids.device)
        mask.scatter_reduce_(-1, ids, chosen.to(torch.int8), "amax")
        scales, places = self.patch_at.shape
        covered = mask[..., self.patch_at.flatten()].unflatten(-1, (scales, places)).long()
        return (covered * torch.arange(1, scales + 1, device=ids.device)[:, None]).amax(-2)


def patch_at(grid: PatchGrid, side: int) -> Tensor:
    """(scales, side * side) int64: the patch of each scale in which the centre of each place lies."""
    tables = []
    for offset, (rows, columns) in zip(grid.offsets, grid.sides, strict=True):
        twice = 2 * torch.arange(side) + 1
        row, column = twice * rows // (2 * side), twice * columns // (2 * side)
        tables.append(offset + (row[:, None] * columns + column).flatten())
    return torch.stack(tables)
