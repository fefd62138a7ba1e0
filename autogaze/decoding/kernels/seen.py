"""What was seen of every place, on the device; see `autogaze.seen` and, for pixels, `autogaze.paste_error`."""

from __future__ import annotations

import triton
import triton.language as tl

from autogaze.decoding.kernels.pairs import load_pair, store_pair
from autogaze.decoding.kernels.paste_error import paste


@triton.jit
def tell(trace, held, level, levels, at, b, place, real, ca, cb, V: tl.constexpr, C: tl.constexpr):
    """What is added to the visual tokens of places: rows whose traces begin at `at`, as a pair of tiles."""
    row = b.to(tl.int64) * V + place
    now_a, now_b = load_pair(trace, at, real, ca, cb, C)
    then_a, then_b = load_pair(held, row * C, real, ca, cb, C)
    how_a, how_b = load_pair(levels, tl.load(level + row, mask=real, other=0) * C, real, ca, cb, C)
    told_a = (now_a.to(tl.float32) - then_a.to(tl.float32)) + how_a.to(tl.float32)
    told_b = (now_b.to(tl.float32) - then_b.to(tl.float32)) + how_b.to(tl.float32)
    return told_a, told_b


@triton.jit
def hold(trace, held, level, ids, patch_at, b, t, place, V: tl.constexpr, SCALES: tl.constexpr, CHUNK: tl.constexpr,
         C: tl.constexpr, CA: tl.constexpr, CB: tl.constexpr):
    """Hold the traces of some places of a clip that ids cover, and the finest scale that covers them."""
    finest = tl.zeros_like(place)
    for scale in range(SCALES):
        patch = tl.load(patch_at + scale * V + place, mask=place < V, other=-2)
        covered = tl.max((patch[:, None] == ids[None, :]).to(tl.int32), axis=1)
        finest = tl.where(covered > 0, scale + 1, finest)
    looked = finest > 0
    row = b.to(tl.int64) * V + place
    tl.store(level + row, finest, mask=looked)
    ca, cb = tl.arange(0, CA), CA + tl.arange(0, CB)
    trace_a, trace_b = load_pair(trace, ((b.to(tl.int64) * CHUNK + t) * V + place) * C, looked, ca, cb, C)
    store_pair(held, row * C, trace_a, trace_b, looked, ca, cb, C)


@triton.jit
def look(trace, held, level, frames, canvas, out_ids, out_chosen, patch_at, clock, B, V: tl.constexpr,
         SCALES: tl.constexpr, SLOTS: tl.constexpr, SB: tl.constexpr, CHUNK: tl.constexpr, C: tl.constexpr,
         CA: tl.constexpr, CB: tl.constexpr, BN: tl.constexpr, HELD: tl.constexpr, SIDE: tl.constexpr,
         PX: tl.constexpr, BLOCKS: tl.constexpr, PER: tl.constexpr):
    """Remember what the ids of a clip's frame cover: in the first HELD programs the traces of BN places, in the others
    the pixels of PER."""
    b, part, t = tl.program_id(0), tl.program_id(1), tl.load(clock)
    slot = tl.arange(0, SB)
    out = (t * B + b) * SLOTS + slot
    chosen = tl.load(out_chosen + out, mask=slot < SLOTS, other=0) != 0
    ids = tl.where(chosen, tl.load(out_ids + out, mask=slot < SLOTS, other=0), -1)
    if part < HELD:
        if HELD > 0:
            hold(trace, held, level, ids, patch_at, b, t, part * BN + tl.arange(0, BN), V, SCALES, CHUNK, C, CA, CB)
    else:
        if len(BLOCKS) > 0:
            first = (part - HELD) * PER
            for place in range(first, tl.minimum(first + PER, V)):
                finest = 0
                for scale in tl.static_range(SCALES):
                    covered = tl.max((ids == tl.load(patch_at + scale * V + place)).to(tl.int32), axis=0)
                    finest = tl.where(covered > 0, scale + 1, finest)
                if finest > 0:
                    paste(frames, canvas, finest, b, t, place, SIDE, PX, BLOCKS, CHUNK)
