"""Block sizes of the fused kernels: what a sweep on an H200 found fastest, see docs/log.md."""

from __future__ import annotations

from dataclasses import dataclass

import torch

PROCESSORS = 132  # of an H200


@dataclass(frozen=True)
class Tuning:
    """Block sizes of the kernels of a pass."""

    wide: bool  # few rows: spread the columns of every matrix over processors too
    rows: int = 16  # rows a program
    pairs: int = 32  # rotary pairs a step
    hidden: int = 64  # hidden units a step
    queries: int = 16  # query rows a program of attention
    keys: int = 64  # keys a step
    tail: int = 32  # keys a step, past the blocks that every frame fills
    warps: int = 4
    stages: int = 2  # not 1: Triton 3.6 then writes past its shared memory in `close_layer`
    attend_warps: int = 4  # of attention with more than 16 query rows a program
    narrow_warps: int = 4  # with 16
    attend_stages: int = 2


def tune(batch: int, rows_a_clip: int, dtype: torch.dtype, prefill: bool) -> Tuning:
    """Block sizes for a pass.

    Args:
        batch: clips.
        rows_a_clip: rows of the pass that each clip has.
        dtype: of the products.
        prefill: a frame's visual tokens, not one group of ids.
    """
    rows = batch * rows_a_clip
    wide = rows <= 16 * PROCESSORS
    if dtype == torch.float32:
        return Tuning(wide, pairs=16, hidden=32, keys=32, warps=8 if wide else 4)  # 4 when wide: registers spill
    queries = 64 if prefill and batch >= 4 else 16
    if wide:
        return Tuning(wide, warps=8, queries=queries, narrow_warps=1)
    if not prefill:
        return Tuning(wide, pairs=16, queries=queries, narrow_warps=1)
    return Tuning(wide, rows=64, pairs=16, hidden=32, stages=3, queries=queries, narrow_warps=1)


def frames_a_split(batch: int, heads: int, rows_a_clip: int, queries: int, ring: int) -> int:
    """Ring slots a program of attention takes: split until processors are busy, since joining costs time too.

    Args:
        batch, heads, rows_a_clip: of the pass.
        queries: rows a program.
        ring: slots.
    """
    programs = batch * heads * ceil(rows_a_clip, queries)
    return ring if programs >= 1024 else max(1, min(ring, programs // 96))


def room_for_splits(splits: int, window: int) -> int:
    """A power of two that splits of attention fit in: one of three, so that few kernels are compiled.

    What is not filled costs a little where splits are joined.
    """
    return 1 if splits == 1 else 4 if splits <= 4 else power(window + 1, 1)


def power(n: int, least: int = 16) -> int:
    """The next power of two: what a Triton block can be."""
    return max(least, 1 << (n - 1).bit_length())


def ceil(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def warps_for(elements: int) -> int:
    """Warps of a program that holds several tiles of so many elements: up to 8 of each in a thread."""
    return max(1, min(8, 1 << (elements - 1).bit_length() >> 8))
