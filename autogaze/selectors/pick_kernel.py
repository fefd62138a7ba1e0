"""Triton kernel of `picks`: a program makes all picks of one frame, without a launch or a host round trip a pick."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _pick(known, seen, gains, patch_at, scale, budget, ids, levels, CELLS: tl.constexpr, CB: tl.constexpr,
          PATCHES: tl.constexpr, PB: tl.constexpr, SCALES: tl.constexpr, WIDTH: tl.constexpr):  # fmt: skip
    """Ids (N, WIDTH) and levels (N, CELLS) from errors (N, CELLS), (N, SCALES, CELLS) and gains (N, PATCHES), which
    are used up."""
    row = tl.program_id(0)
    cell, patch = tl.arange(0, CB), tl.arange(0, PB)
    level = tl.full((CB,), -1, tl.int32)
    shown = tl.load(known + row * CELLS + cell, mask=cell < CELLS, other=0)
    count = tl.load(budget + row).to(tl.int32)
    for i in range(0, count):
        # volatile: the sums of the pick before went past the first cache
        gain = tl.load(gains + row * PATCHES + patch, mask=patch < PATCHES, other=-2147483648, volatile=True)
        best = tl.min(tl.where((gain == tl.max(gain, axis=0)) & (patch < PATCHES), patch, PATCHES - 1), axis=0)
        tl.store(ids + row * WIDTH + i, best.to(tl.int64))
        of = tl.load(scale + best)
        mine = tl.load(patch_at + of * CELLS + cell, mask=cell < CELLS, other=-1) == best
        fresh = mine & (level < of)
        now = tl.load(seen + (row * SCALES + of) * CELLS + cell, mask=fresh, other=0)
        tl.debug_barrier()
        for k in tl.static_range(SCALES):
            left = tl.load(seen + (row * SCALES + k) * CELLS + cell, mask=fresh, other=0)
            before = tl.where(level < k, shown - left, 0)
            after = tl.where(of < k, now - left, 0)
            to = tl.load(patch_at + k * CELLS + cell, mask=fresh, other=0)
            tl.atomic_add(gains + row * PATCHES + to, after - before, mask=fresh)
        tl.debug_barrier()
        tl.store(gains + row * PATCHES + patch, tl.full((PB,), -2147483648, tl.int32), mask=patch == best)
        tl.debug_barrier()
        shown = tl.where(fresh, now, shown)
        level = tl.where(fresh, of, level)
    tl.store(levels + row * CELLS + cell, level, mask=cell < CELLS)


def pick(
    known: Tensor, seen: Tensor, gains: Tensor, patch_at: Tensor, scale: Tensor, budget: Tensor, width: int
) -> tuple[Tensor, Tensor]:
    """Ids (N, width) int64 and levels (N, cells) int32; see `picks.Picks`.

    Args:
        known: (N, cells) int32, error of what is known.
        seen: (N, scales, cells) int32, error that each scale leaves.
        gains: (N, patches) int32, what each patch takes away; overwritten.
        patch_at: (scales, cells) int64, the patch of each scale that covers each cell.
        scale: (patches,) int32.
        budget: (N,) int64.
        width: the largest budget.
    """
    ids = torch.zeros(len(known), width, dtype=torch.int64, device=known.device)
    levels = torch.empty_like(known)
    cells, patches = known.shape[1], gains.shape[1]
    _pick[(len(known),)](
        known.contiguous(),
        seen.contiguous(),
        gains,
        patch_at.int().contiguous(),
        scale,
        budget.contiguous(),
        ids,
        levels,
        CELLS=cells,
        CB=triton.next_power_of_2(cells),
        PATCHES=patches,
        PB=triton.next_power_of_2(patches),
        SCALES=seen.shape[1],
        WIDTH=width,
        num_warps=8,
    )
    return ids, levels
