"""Attention over the ring of frames, split over frames and joined by the program that finishes last."""

from __future__ import annotations

import triton
import triton.language as tl

from autogaze.decoding.kernels.state import ACTIVE, PEND_N, PEND_OFFSET, STEP_OFFSET, follow


@triton.jit
def attend_block(query, keys, values, base, n, length, limit, top, total, acc, d, D: tl.constexpr, BN: tl.constexpr,
                 MASKED: tl.constexpr, PRECISION: tl.constexpr):
    """Fold one block of keys into the running softmax (arXiv:2205.14135); MASKED: some keys are out of sight."""
    token = n + tl.arange(0, BN)
    if MASKED:
        k = tl.load(keys + (base + token)[None, :] * D + d[:, None], mask=(token < length)[None, :], other=0.0)
        v = tl.load(values + (base + token)[:, None] * D + d[None, :], mask=(token < length)[:, None], other=0.0)
    else:
        k = tl.load(keys + (base + token)[None, :] * D + d[:, None])
        v = tl.load(values + (base + token)[:, None] * D + d[None, :])
    s = tl.dot(query, k, input_precision=PRECISION)
    if MASKED:
        s = tl.where((token < length)[None, :] & (token[None, :] <= limit[:, None]), s, float("-inf"))
    new_top = tl.maximum(top, tl.max(s, axis=1))
    safe = tl.where(new_top == float("-inf"), 0.0, new_top)
    p = tl.exp2(s - safe[:, None])
    fade = tl.exp2(top - safe)
    acc = acc * fade[:, None] + tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
    return new_top, total * fade + tl.sum(p, axis=1), acc


@triton.jit
def join_splits(out, peak, mass, at, stride, splits, valid, d, SPLITS: tl.constexpr):
    """Attention output (rows, D) of one head from its splits, each with its own peak and mass."""
    split = tl.arange(0, SPLITS)
    there = (split < splits)[:, None] & valid[None, :]
    places = split[:, None] * stride + at[None, :]
    D: tl.constexpr = d.shape[0]
    tops = tl.load(peak + places, mask=there, other=float("-inf"), cache_modifier=".cg")
    masses = tl.load(mass + places, mask=there, other=0.0, cache_modifier=".cg")
    to = out + places[:, :, None].to(tl.int64) * D + d[None, None, :]
    parts = tl.load(to, mask=there[:, :, None], other=0.0, cache_modifier=".cg")
    top = tl.max(tops, axis=0)
    weight = tl.exp2(tops - tl.where(top == float("-inf"), 0.0, top)[None, :])
    total = tl.sum(weight * masses, axis=0)
    return tl.sum(parts * weight[:, :, None], axis=0) / tl.where(total > 0, total, 1.0)[:, None]


@triton.jit
def attend(q, keys, values, attended, out, peak, mass, arrived, frame_len, state, clock, scale, B, ROWS, FIRST, COUNT,
           K: tl.constexpr, WINDOW: tl.constexpr, HEADS: tl.constexpr, RING: tl.constexpr, TOKENS: tl.constexpr,
           COLS: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, FRAMES: tl.constexpr,
           SPLITS: tl.constexpr, PREFILL: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr):
    """Attention of COUNT rows from FIRST on. Every program takes FRAMES ring slots; the last to finish joins them."""
    follow(PDL)
    bh, tile, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    b, head = bh // HEADS, bh % HEADS
    # All that the program must know is loaded before the first branch waits for any of it.
    frame = tl.load(clock + 1)
    row = state + b * COLS
    pend_size, pend_offset = tl.load(row + PEND_N), tl.load(row + PEND_OFFSET)
    step_offset, active = tl.load(row + STEP_OFFSET), tl.load(row + ACTIVE)
    local = tile * BM + tl.arange(0, BM)
    r = FIRST + local
    d = tl.arange(0, D)
    at = (b * HEADS + head) * ROWS + r
    query = tl.load(q + at[:, None] * D + d[None, :], mask=(local < COUNT)[:, None], other=0.0)
    filled = tl.minimum(frame + 1, RING)
    if split * FRAMES >= filled:
        return
    current, previous, oldest = frame % RING, (frame + RING - 1) % RING, (frame + 1) % RING
    if PREFILL:
        pending = r < K
        on_current = ~pending
        row_offset = tl.where(pending, pend_offset + r, r - K)
        valid = (local < COUNT) & (on_current | (r < pend_size))
    else:
        if active == 0:
            return
        on_current = r >= 0
        row_offset = step_offset + r
        valid = local < COUNT
    query = (query * scale).to(q.dtype.element_ty)
    evicting = (frame >= WINDOW) & (RING > WINDOW)  # the oldest slot is only for the last frame's final group
    has_pending = PREFILL & (FIRST + tile * BM < K)
    top = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, D), tl.float32)
    for w in range(split * FRAMES, tl.minimum(split * FRAMES + FRAMES, filled)):
        length = tl.load(frame_len + b * RING + w)
        base = ((b.to(tl.int64) * HEADS + head) * RING + w) * TOKENS
        own = ((w == current) & on_current) | ((w == previous) & ~on_current)
        hidden = ((w == current) & ~on_current) | ((w == oldest) & evicting & on_current)
        limit = tl.where(own, row_offset, tl.where(hidden, -1, TOKENS))
        special = (w == current) | ((w == oldest) & evicting) | ((w == previous) & has_pending)
        whole = tl.where(special, 0, length // BN * BN)
        for n in range(0, whole, BN):
            top, total, acc = attend_block(query, keys, values, base, n, length, limit, top, total, acc, d, D, BN,
                                           False, PRECISION)
        for n in range(whole, length, BN):
            top, total, acc = attend_block(query, keys, values, base, n, length, limit, top, total, acc, d, D, BN, True,
                                           PRECISION)
    to = attended + at[:, None].to(tl.int64) * D + d[None, :]
    if SPLITS == 1:
        whole_output = acc / tl.where(total > 0, total, 1.0)[:, None]
        tl.store(to, whole_output.to(attended.dtype.element_ty), mask=valid[:, None])
        return
    stride = B * HEADS * ROWS
    mine = split * stride + at
    tl.store(peak + mine, top, mask=valid)
    tl.store(mass + mine, total, mask=valid)
    tl.store(out + mine[:, None].to(tl.int64) * D + d[None, :], acc, mask=valid[:, None])
    tl.debug_barrier()
    splits = (filled + FRAMES - 1) // FRAMES
    counter = arrived + bh * tl.num_programs(1) + tile
    if tl.atomic_add(counter, 1) == splits - 1:
        tl.store(counter, 0)
        joined = join_splits(out, peak, mass, at, stride, splits, valid, d, SPLITS)
        tl.store(to, joined.to(attended.dtype.element_ty), mask=valid[:, None])
