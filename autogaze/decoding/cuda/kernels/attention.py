"""Attention over the ring of frames, split over frames and joined by the program that finishes last."""

from __future__ import annotations

import triton
import triton.language as tl

from autogaze.decoding.cuda.kernels.state import ACTIVE, COLS, PEND_N, PEND_OFFSET, STEP_OFFSET, follow, overlap


@triton.jit
def attend_block(query, keys, values, base, n, length, limit, top, total, acc, d, D: tl.constexpr, BN: tl.constexpr,
                 PARTIAL: tl.constexpr, LIMITED: tl.constexpr, PRECISION: tl.constexpr):
    """Fold one block of keys into the running softmax (arXiv:2205.14135). PARTIAL: there may be fewer than BN, and none
    unless it is the first block; LIMITED: rows see up to `limit` only, which may be nothing."""
    token = n + tl.arange(0, BN)
    to_keys = keys + (base + token)[None, :] * D + d[:, None]
    to_values = values + (base + token)[:, None] * D + d[None, :]
    if PARTIAL:
        there = token < length
        k = tl.load(to_keys, mask=there[None, :], other=0.0)
        v = tl.load(to_values, mask=there[:, None], other=0.0)
    else:
        k, v = tl.load(to_keys), tl.load(to_values)
    s = tl.dot(query, k, input_precision=PRECISION)
    if LIMITED:
        s = tl.where(there[None, :] & (token[None, :] <= limit[:, None]), s, float("-inf"))
    elif PARTIAL:
        s = tl.where(there[None, :], s, float("-inf"))
    new_top = tl.maximum(top, tl.max(s, axis=1))
    safe = tl.where(new_top == float("-inf"), 0.0, new_top) if LIMITED else new_top
    p = tl.exp2(s - safe[:, None])
    fade = tl.exp2(top - safe)
    acc = tl.dot(p.to(v.dtype), v, acc * fade[:, None], input_precision=PRECISION)
    return new_top, total * fade + tl.sum(p, axis=1), acc


@triton.jit
def slot_of_age(age, current, RING):
    """The ring slot of the frame that came `age` frames before the current one, up to RING."""
    slot = current - age
    return tl.where(slot < 0, slot + RING, slot)


@triton.jit
def attend_seen(query, keys, values, head_base, frame_len, current, seen_from, seen_to, r, top, total, acc, d, RING,
                TOKENS, D: tl.constexpr, V: tl.constexpr, BN: tl.constexpr, BT: tl.constexpr, SLOTS: tl.constexpr,
                PRECISION: tl.constexpr):
    """Frames of ages [seen_from, seen_to), which every row sees, in loops without branches, so that the next keys are
    on their way while these are read: the blocks that every frame fills, then what is left of each."""
    FULL: tl.constexpr = V // BN
    for age in range(seen_from, seen_to):
        base = head_base + slot_of_age(age, current, RING) * TOKENS
        for n in tl.static_range(FULL):
            top, total, acc = attend_block(query, keys, values, base, n * BN, 0, r, top, total, acc, d, D, BN, False,
                                           False, PRECISION)
    slots = tl.arange(0, SLOTS)
    lengths = tl.load(frame_len + slots, mask=slots < RING, other=0)
    blocks = (tl.max(lengths, axis=0) - FULL * BN + BT - 1) // BT
    for i in range(0, (seen_to - seen_from) * blocks):
        w = slot_of_age(seen_from + i // blocks, current, RING)
        n = FULL * BN + i % blocks * BT
        length = tl.load(frame_len + w)
        top, total, acc = attend_block(query, keys, values, head_base + w * TOKENS, n, length, r, top, total, acc, d,
                                       D, BT, True, False, PRECISION)
    return top, total, acc


@triton.jit
def attend_partly(query, keys, values, head_base, frame_len, current, previous, oldest, youngest, end, seen_from,
                  seen_to, evicting, on_current, row_offset, top, total, acc, d, RING, TOKENS, D: tl.constexpr,
                  BN: tl.constexpr, PRECISION: tl.constexpr):
    """Of the frames of ages [youngest, end) those that `attend_seen` leaves: of a row's own frame it sees what is
    before it, of another it may see nothing."""
    for age in range(youngest, end):
        w = slot_of_age(age, current, RING)
        own = ((w == current) & on_current) | ((w == previous) & ~on_current)
        hidden = ((w == current) & ~on_current) | ((w == oldest) & evicting & on_current)
        limit = tl.where(own, row_offset, tl.where(hidden, -1, TOKENS))
        length = tl.load(frame_len + w)
        reach = tl.minimum(length, tl.max(limit, axis=0) + 1)
        for n in range(0, tl.where((age < seen_from) | (age >= seen_to), reach, 0), BN):
            top, total, acc = attend_block(query, keys, values, head_base + w * TOKENS, n, length, limit, top, total,
                                           acc, d, D, BN, True, True, PRECISION)
    return top, total, acc


@triton.jit
def join_splits(out, peak, mass, at, stride, splits, valid, d, SPLITS: tl.constexpr):
    """Attention output (rows, D) of one head from its splits, each with its own peak and mass."""
    split = tl.arange(0, SPLITS)
    there = (split < splits)[:, None] & valid[None, :]
    places = split[:, None] * stride + at[None, :]
    D: tl.constexpr = d.shape[0]
    tops = tl.load(peak + places, mask=there, other=float("-inf"), cache_modifier=".cg")
    masses = tl.load(mass + places, mask=there, other=0.0, cache_modifier=".cg")
    top = tl.max(tops, axis=0)
    safe = tl.where(top == float("-inf"), 0.0, top)
    total = tl.sum(tl.exp2(tops - safe[None, :]) * masses, axis=0)
    joined = tl.zeros((at.shape[0], D), tl.float32)
    for n in tl.static_range(SPLITS):
        here = valid & (n < splits)
        weight = tl.exp2(tl.load(peak + n * stride + at, mask=here, other=float("-inf"), cache_modifier=".cg") - safe)
        to = out + (n * stride + at)[:, None].to(tl.int64) * D + d[None, :]
        joined += tl.load(to, mask=here[:, None], other=0.0, cache_modifier=".cg") * weight[:, None]
    return joined / tl.where(total > 0, total, 1.0)[:, None]


@triton.jit
def hand_over(top, total, acc, attended, out, peak, mass, arrived, at, stride, filled, valid, d, FRAMES,
              SPLITS: tl.constexpr):
    """Store the attention of rows; where several programs have parts of it, the last one to come joins them."""
    D: tl.constexpr = d.shape[0]
    to = attended + at[:, None].to(tl.int64) * D + d[None, :]
    if SPLITS == 1:
        whole_output = acc / tl.where(total > 0, total, 1.0)[:, None]
        tl.store(to, whole_output.to(attended.dtype.element_ty), mask=valid[:, None])
    else:
        mine = tl.program_id(2) * stride + at
        tl.store(peak + mine, top, mask=valid)
        tl.store(mass + mine, total, mask=valid)
        tl.store(out + mine[:, None].to(tl.int64) * D + d[None, :], acc, mask=valid[:, None])
        tl.debug_barrier()
        splits = (filled + FRAMES - 1) // FRAMES
        counter = arrived + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
        if tl.atomic_add(counter, 1) == splits - 1:
            tl.store(counter, 0)
            joined = join_splits(out, peak, mass, at, stride, splits, valid, d, SPLITS)
            tl.store(to, joined.to(attended.dtype.element_ty), mask=valid[:, None])


@triton.jit(do_not_specialize=["B", "ROWS", "FIRST", "COUNT", "RING", "TOKENS", "FRAMES"])
def attend(q, keys, values, attended, out, peak, mass, arrived, frame_len, state, clock, scale, B, ROWS, FIRST, COUNT,
           RING, TOKENS, FRAMES, K: tl.constexpr, WINDOW: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr,
           V: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BT: tl.constexpr, SPLITS: tl.constexpr,
           SLOTS: tl.constexpr, PREFILL: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr):
    """Attention of COUNT rows from FIRST on. Every program takes FRAMES ring slots; the last to finish joins them, of
    which there are up to SPLITS. SLOTS: a power of two from RING on."""
    overlap(PDL)
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
    head_base = (b.to(tl.int64) * HEADS + head) * RING * TOKENS
    # frames are taken by their age; those that every row sees come first
    youngest, end = split * FRAMES, tl.minimum(split * FRAMES + FRAMES, filled)
    seen_from = tl.maximum(youngest, tl.where(has_pending, 2, 1))
    seen_to = tl.minimum(end, filled - tl.where(evicting, 1, 0))
    top, total, acc = attend_seen(query, keys, values, head_base, frame_len + b * RING, current, seen_from, seen_to, r,
                                  top, total, acc, d, RING, TOKENS, D, V, BN, BT, SLOTS, PRECISION)
    top, total, acc = attend_partly(query, keys, values, head_base, frame_len + b * RING, current, previous, oldest,
                                    youngest, end, seen_from, seen_to, evicting, on_current, row_offset, top, total,
                                    acc, d, RING, TOKENS, D, BN, PRECISION)
    hand_over(top, total, acc, attended, out, peak, mass, arrived, at, B * HEADS * ROWS, filled, valid, d, FRAMES,
              SPLITS)
