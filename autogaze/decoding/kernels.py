"""Triton kernels that decode many clips side by side, without a host round trip inside a frame.

One pass over the decoder is: `open_rows` (embeddings, first norm, first q/k/v), then for every layer `attend` (split
over the frames in the window) and `close_layer` (output projection, MLP, and the next layer's q/k/v; when rows are few
`mix_rows` and `next_layer`, which spread the same work over more processors), then `read_heads` and `choose`. A pass
is a prefill (the last frame's final group and a frame's visual tokens) or a step (one group of K ids). In the last
layer only the newest row is computed: nothing else is read from it.

Keys live in a ring of frames, (layer, clip, head, frame, token, head_dim), so a window of frames slides without a copy.
What a pass has to know about a clip stands in `state`, which the kernels keep themselves. A clip that is done with its
frame leaves every kernel at its first instruction.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Columns of `state`, (B, COLUMNS) int32.
PEND_N = tl.constexpr(0)  # ids of the last frame's final group that are not in the cache yet
PEND_OFFSET = tl.constexpr(1)  # where in the last frame's ring slot they go
PEND_POSITION = tl.constexpr(2)  # rotary position of the first of them
PEND_FROZEN = tl.constexpr(3)  # 1: their positions follow their slots in the group (see `plain` on positions)
VISUAL_POSITION = tl.constexpr(4)  # rotary position of the frame's first visual token
GROUP_POSITION = tl.constexpr(5)  # rotary position of the first id of every group of the frame
TOTAL = tl.constexpr(6)  # tokens counted so far
STEP_OFFSET = tl.constexpr(7)  # where in the frame's ring slot the group being fed goes
ACTIVE = tl.constexpr(8)  # 1: the clip goes on with its frame
ROOM = tl.constexpr(9)  # ids the frame may still spend
SLOTS = tl.constexpr(10)  # slots decoded in this frame
GROUPS = tl.constexpr(11)  # groups decoded in this frame
COLUMNS = 12


@triton.jit
def follow(PDL: tl.constexpr):
    """Programmatic dependent launch (Hopper): this kernel was launched while the one before still ran; wait for its
    results, and let the next be launched already."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def begin_frame(state, frame_len, clock, budgets, in_step, running, B, V: tl.constexpr, K: tl.constexpr,
                RING: tl.constexpr,
                CHUNK: tl.constexpr, COLS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Advance the clock by a frame and prepare every clip for the prefill. One program."""
    follow(PDL)
    t = tl.load(clock) + 1
    frame = tl.load(clock + 1) + 1
    tl.store(clock, t)
    tl.store(clock + 1, frame)
    previous = (frame + RING - 1) % RING
    current = frame % RING
    b = tl.arange(0, BLOCK)
    real = b < B
    row = state + b * COLS
    pend = tl.load(row + PEND_N, mask=real, other=0)
    total = tl.load(row + TOTAL, mask=real, other=0)
    groups = tl.load(row + GROUPS, mask=real, other=0)
    group_position = tl.load(row + GROUP_POSITION, mask=real, other=0)
    together = tl.load(in_step + 1)  # of the frame before
    tl.store(in_step + 1, tl.load(in_step))
    frozen = (groups < tl.max(groups, axis=0)) & (together > 0)
    held = tl.load(frame_len + b * RING + previous, mask=real, other=0)
    tl.store(row + PEND_OFFSET, held, mask=real)
    tl.store(row + PEND_POSITION, tl.where(frozen, group_position, total), mask=real)
    tl.store(row + PEND_FROZEN, frozen.to(tl.int32), mask=real)
    tl.store(frame_len + b * RING + previous, held + pend, mask=real)
    tl.debug_barrier()
    tl.store(frame_len + b * RING + current, tl.zeros_like(b) + V, mask=real)
    tl.store(row + VISUAL_POSITION, total + pend, mask=real)
    tl.store(row + TOTAL, total + pend + V, mask=real)
    tl.store(row + GROUP_POSITION, total + pend + V - K, mask=real)
    budget = tl.load(budgets + b * CHUNK + t, mask=real, other=0)
    tl.store(row + ROOM, budget, mask=real)
    tl.store(row + ACTIVE, (budget > 0).to(tl.int32), mask=real)
    tl.store(row + SLOTS, tl.zeros_like(b), mask=real)
    tl.store(row + GROUPS, tl.zeros_like(b), mask=real)
    tl.store(running, tl.sum((budget > 0).to(tl.int32), axis=0))


@triton.jit
def place_rows(b, r, real, state, pend_slots, clock, K: tl.constexpr, RING: tl.constexpr, COLS: tl.constexpr,
               PREFILL: tl.constexpr):
    """Ring slot, offset in it, rotary position and validity of rows r of clips b."""
    frame = tl.load(clock + 1)
    row = state + b * COLS
    if PREFILL:
        pending = r < K
        size = tl.load(row + PEND_N, mask=real, other=0)
        frozen = tl.load(row + PEND_FROZEN, mask=real, other=0) > 0
        stood = tl.load(pend_slots + b * K + r, mask=real & pending, other=0)
        pend_position = tl.load(row + PEND_POSITION, mask=real, other=0) + tl.where(frozen, stood, r)
        slot = tl.where(pending, (frame + RING - 1) % RING, frame % RING)
        offset = tl.where(pending, tl.load(row + PEND_OFFSET, mask=real, other=0) + r, r - K)
        position = tl.where(pending, pend_position, tl.load(row + VISUAL_POSITION, mask=real, other=0) + r - K)
        valid = real & ((r >= K) | (r < size))
    else:
        slot = tl.zeros_like(r) + frame % RING
        offset = tl.load(row + STEP_OFFSET, mask=real, other=0) + r
        position = tl.load(row + GROUP_POSITION, mask=real, other=0) + r
        valid = real & (tl.load(row + ACTIVE, mask=real, other=0) > 0)
    return slot, offset, position, valid


@triton.jit
def normed(x, eps, C: tl.constexpr):
    """RMS norm without its weight, which is folded into the matrix that follows. Columns past C are zero."""
    return x * tl.rsqrt(tl.sum(x * x, axis=1) / C + eps)[:, None]


@triton.jit
def project(xn, weight, c, columns, width: tl.constexpr, limit, C: tl.constexpr, PRECISION: tl.constexpr):
    """xn (rows, C) times some columns of a (C, width) matrix."""
    w = tl.load(weight + c[:, None] * width + columns[None, :], mask=(c < C)[:, None] & (columns < limit)[None, :],
                other=0.0)
    return tl.dot(xn, w, input_precision=PRECISION)


@triton.jit
def store_queries_keys(xn, n, wqk, frequencies, q, keys, b, r, slot, offset, position, valid, c, ROWS,
                       HEADS: tl.constexpr,
                       RING: tl.constexpr, TOKENS: tl.constexpr, C: tl.constexpr, D: tl.constexpr, NB: tl.constexpr,
                       PRECISION: tl.constexpr):
    """NB pairs of rotated query and key columns from pair n on."""
    HALF: tl.constexpr = D // 2
    WIDTH: tl.constexpr = HEADS * HALF
    dtype = q.dtype.element_ty
    columns = n + tl.arange(0, NB)
    head, j = columns // HALF, columns % HALF
    angle = position.to(tl.float32)[:, None] * tl.load(frequencies + j)[None, :]
    cos, sin = tl.cos(angle), tl.sin(angle)
    mask = valid[:, None] & (columns < WIDTH)[None, :]
    low = project(xn, wqk, c, columns, 4 * WIDTH, WIDTH, C, PRECISION)
    high = project(xn, wqk + WIDTH, c, columns, 4 * WIDTH, WIDTH, C, PRECISION)
    to = q + ((b[:, None] * HEADS + head[None, :]) * ROWS + r[:, None]) * D + j[None, :]
    tl.store(to, (low * cos - high * sin).to(dtype), mask=mask)
    tl.store(to + HALF, (high * cos + low * sin).to(dtype), mask=mask)
    low = project(xn, wqk + 2 * WIDTH, c, columns, 4 * WIDTH, WIDTH, C, PRECISION)
    high = project(xn, wqk + 3 * WIDTH, c, columns, 4 * WIDTH, WIDTH, C, PRECISION)
    place = ((b[:, None].to(tl.int64) * HEADS + head[None, :]) * RING + slot[:, None]) * TOKENS + offset[:, None]
    tl.store(keys + place * D + j[None, :], (low * cos - high * sin).to(dtype), mask=mask)
    tl.store(keys + place * D + HALF + j[None, :], (high * cos + low * sin).to(dtype), mask=mask)


@triton.jit
def store_values(xn, n, wv, values, b, slot, offset, valid, c, HEADS: tl.constexpr, RING: tl.constexpr,
                 TOKENS: tl.constexpr, C: tl.constexpr, D: tl.constexpr, VB: tl.constexpr, PRECISION: tl.constexpr):
    """VB value columns from column n on."""
    columns = n + tl.arange(0, VB)
    head, j = columns // D, columns % D
    v = project(xn, wv, c, columns, HEADS * D, HEADS * D, C, PRECISION)
    place = ((b[:, None].to(tl.int64) * HEADS + head[None, :]) * RING + slot[:, None]) * TOKENS + offset[:, None]
    mask = valid[:, None] & (columns < HEADS * D)[None, :]
    tl.store(values + place * D + j[None, :], v.to(values.dtype.element_ty), mask=mask)


@triton.jit
def store_columns(xn, wqk, wv, frequencies, q, keys, values, b, r, slot, offset, position, valid, c, share, ROWS,
                  HEADS: tl.constexpr, RING: tl.constexpr, TOKENS: tl.constexpr, C: tl.constexpr, D: tl.constexpr,
                  NB: tl.constexpr, VB: tl.constexpr, PRECISION: tl.constexpr):
    """One share of the columns: first the shares of queries and keys, then those of values."""
    QK_SHARES: tl.constexpr = (HEADS * D // 2 + NB - 1) // NB
    if share < QK_SHARES:
        store_queries_keys(xn, share * NB, wqk, frequencies, q, keys, b, r, slot, offset, position, valid, c, ROWS,
                           HEADS,
                           RING, TOKENS, C, D, NB, PRECISION)
    else:
        store_values(xn, (share - QK_SHARES) * VB, wv, values, b, slot, offset, valid, c, HEADS, RING, TOKENS, C, D, VB,
                     PRECISION)


@triton.jit
def store_qkv(xn, wqk, wv, frequencies, q, keys, values, b, r, slot, offset, position, valid, c, ROWS,
              HEADS: tl.constexpr,
              RING: tl.constexpr, TOKENS: tl.constexpr, C: tl.constexpr, D: tl.constexpr, NB: tl.constexpr,
              VB: tl.constexpr, PRECISION: tl.constexpr):
    """Queries to `q` (B, heads, rows, D), rotated keys and values into the ring: all columns."""
    for n in range(0, HEADS * D // 2, NB):
        store_queries_keys(xn, n, wqk, frequencies, q, keys, b, r, slot, offset, position, valid, c, ROWS, HEADS, RING,
                           TOKENS, C, D, NB, PRECISION)
    for n in range(0, HEADS * D, VB):
        store_values(xn, n, wv, values, b, slot, offset, valid, c, HEADS, RING, TOKENS, C, D, VB, PRECISION)


@triton.jit
def open_rows(x, q, keys, values, wqk, wv, frequencies, embedding, visual, ids, pend_slots, state, clock, eps, B, ROWS,
              V: tl.constexpr, K: tl.constexpr, HEADS: tl.constexpr, RING: tl.constexpr, TOKENS: tl.constexpr,
              CHUNK: tl.constexpr, COLS: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, D: tl.constexpr,
              BM: tl.constexpr, NB: tl.constexpr, VB: tl.constexpr, SHARED: tl.constexpr, PREFILL: tl.constexpr,
              PRECISION: tl.constexpr, PDL: tl.constexpr):
    """Embed the rows of a pass, and their q/k/v of the first layer."""
    follow(PDL)
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    b, r = m // ROWS, m % ROWS
    slot, offset, position, valid = place_rows(b, r, m < B * ROWS, state, pend_slots, clock, K, RING, COLS, PREFILL)
    if tl.max(valid.to(tl.int32), axis=0) == 0:
        return
    c = tl.arange(0, CP)
    inside = (c < C)[None, :]
    token = valid & (r < K)
    id = tl.load(ids + b * K + r, mask=token, other=0)
    rows = tl.load(embedding + id[:, None] * C + c[None, :], mask=token[:, None] & inside, other=0.0).to(tl.float32)
    if PREFILL:
        seen = valid & (r >= K)
        t = tl.load(clock)
        from_visual = visual + ((b[:, None].to(tl.int64) * CHUNK + t) * V + (r - K)[:, None]) * C + c[None, :]
        rows += tl.load(from_visual, mask=seen[:, None] & inside, other=0.0).to(tl.float32)
    if tl.program_id(1) == 0:
        tl.store(x + m[:, None].to(tl.int64) * C + c[None, :], rows, mask=valid[:, None] & inside)
    xn = normed(rows, eps, C).to(q.dtype.element_ty)
    if SHARED:  # few rows: the columns are spread over the second axis of the grid
        store_columns(xn, wqk, wv, frequencies, q, keys, values, b, r, slot, offset, position, valid, c,
                      tl.program_id(1),
                      ROWS, HEADS, RING, TOKENS, C, D, NB, VB, PRECISION)
    else:
        store_qkv(xn, wqk, wv, frequencies, q, keys, values, b, r, slot, offset, position, valid, c, ROWS, HEADS, RING,
                  TOKENS, C, D, NB, VB, PRECISION)


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
                                           False,
                                           PRECISION)
        for n in range(whole, length, BN):
            top, total, acc = attend_block(query, keys, values, base, n, length, limit, top, total, acc, d, D, BN, True,
                                           PRECISION)
    to = attended + at[:, None].to(tl.int64) * D + d[None, :]
    if SPLITS == 1:
        tl.store(to, (acc / tl.where(total > 0, total, 1.0)[:, None]).to(attended.dtype.element_ty), mask=valid[:,
        None])
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
def add_attention(rows, attended, wo, b, r, valid, c, ROWS, HEADS: tl.constexpr, C: tl.constexpr, D: tl.constexpr,
                  KB: tl.constexpr, PRECISION: tl.constexpr):
    """rows (BM, C) plus the output projection of their attention."""
    for n in range(0, C, KB):
        columns = n + tl.arange(0, KB)
        head, d = columns // D, columns % D
        at = ((b[:, None] * HEADS + head[None, :]) * ROWS + r[:, None]).to(tl.int64) * D + d[None, :]
        inside = columns < C
        part = tl.load(attended + at, mask=valid[:, None] & inside[None, :], other=0.0)
        w = tl.load(wo + columns[:, None] * C + c[None, :], mask=inside[:, None] & (c < C)[None, :], other=0.0)
        rows += tl.dot(part, w, input_precision=PRECISION)
    return rows


@triton.jit
def close_layer(x, last, q, keys, values, attended, wo, wg, wu, wd, wqk, wv, frequencies, pend_slots, state, clock,
                eps, B,
                ROWS, FIRST, COUNT, K: tl.constexpr, HEADS: tl.constexpr, RING: tl.constexpr, TOKENS: tl.constexpr,
                COLS: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, D: tl.constexpr, HIDDEN: tl.constexpr,
                BM: tl.constexpr, HB: tl.constexpr, NB: tl.constexpr, VB: tl.constexpr, PREFILL: tl.constexpr,
                LAST: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr):
    """Finish a layer for COUNT rows a clip from FIRST on, and begin the next (LAST: hand the row to the heads)."""
    follow(PDL)
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    b, r = m // COUNT, FIRST + m % COUNT
    slot, offset, position, valid = place_rows(b, r, m < B * COUNT, state, pend_slots, clock, K, RING, COLS, PREFILL)
    if tl.max(valid.to(tl.int32), axis=0) == 0:
        return
    dtype = q.dtype.element_ty
    c = tl.arange(0, CP)
    mask = valid[:, None] & (c < C)[None, :]
    at = (b * ROWS + r)[:, None].to(tl.int64) * C + c[None, :]
    rows = tl.load(x + at, mask=mask, other=0.0)
    rows = add_attention(rows, attended, wo, b, r, valid, c, ROWS, HEADS, C, D, HB, PRECISION)
    xn = normed(rows, eps, C).to(dtype)
    for n in range(0, HIDDEN, HB):
        rows += gated(xn, wg, wu, wd, n + tl.arange(0, HB), c, HIDDEN, C, PRECISION)
    if LAST:
        tl.store(last + b[:, None] * C + c[None, :], rows, mask=mask)
    else:
        tl.store(x + at, rows, mask=mask)
        store_qkv(normed(rows, eps, C).to(dtype), wqk, wv, frequencies, q, keys, values, b, r, slot, offset, position,
                  valid, c, ROWS, HEADS, RING, TOKENS, C, D, NB, VB, PRECISION)


@triton.jit
def gated(xn, wg, wu, wd, columns, c, HIDDEN: tl.constexpr, C: tl.constexpr, PRECISION: tl.constexpr):
    """What some hidden units of the SwiGLU MLP add to the rows."""
    gate = project(xn, wg, c, columns, HIDDEN, HIDDEN, C, PRECISION)
    up = project(xn, wu, c, columns, HIDDEN, HIDDEN, C, PRECISION)
    hidden = (gate * tl.sigmoid(gate) * up).to(wd.dtype.element_ty)
    w = tl.load(wd + columns[:, None] * C + c[None, :], mask=(columns < HIDDEN)[:, None] & (c < C)[None, :], other=0.0)
    return tl.dot(hidden, w, input_precision=PRECISION)


@triton.jit
def mix_rows(x, x_next, parts, attended, wo, wg, wu, wd, pend_slots, state, clock, eps, B, ROWS, FIRST, COUNT,
             K: tl.constexpr, HEADS: tl.constexpr, RING: tl.constexpr, COLS: tl.constexpr, C: tl.constexpr,
             CP: tl.constexpr, D: tl.constexpr, HIDDEN: tl.constexpr, BM: tl.constexpr, HB: tl.constexpr,
             PREFILL: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr):
    """Few rows: the first half of `close_layer`, spread over processors by hidden units; each adds one part."""
    follow(PDL)
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    b, r = m // COUNT, FIRST + m % COUNT
    c = tl.arange(0, CP)
    real = m < B * COUNT
    at = (b * ROWS + r)[:, None].to(tl.int64) * C + c[None, :]
    rows = tl.load(x + at, mask=real[:, None] & (c < C)[None, :], other=0.0)
    _, _, _, valid = place_rows(b, r, real, state, pend_slots, clock, K, RING, COLS, PREFILL)
    if tl.max(valid.to(tl.int32), axis=0) == 0:
        return
    mask = valid[:, None] & (c < C)[None, :]
    rows = add_attention(rows, attended, wo, b, r, valid, c, ROWS, HEADS, C, D, HB, PRECISION)
    if tl.program_id(1) == 0:
        tl.store(x_next + at, rows, mask=mask)
    xn = normed(rows, eps, C).to(wg.dtype.element_ty)
    part = gated(xn, wg, wu, wd, tl.program_id(1) * HB + tl.arange(0, HB), c, HIDDEN, C, PRECISION)
    tl.store(parts + tl.program_id(1).to(tl.int64) * B * ROWS * C + at, part, mask=mask)


@triton.jit
def next_layer(x, x_next, parts, last, q, keys, values, wqk, wv, frequencies, pend_slots, state, clock, eps, B, ROWS,
               FIRST,
               COUNT, K: tl.constexpr, HEADS: tl.constexpr, RING: tl.constexpr, TOKENS: tl.constexpr,
               COLS: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, D: tl.constexpr, PARTS: tl.constexpr,
               BM: tl.constexpr, NB: tl.constexpr, VB: tl.constexpr, PREFILL: tl.constexpr, LAST: tl.constexpr,
               PRECISION: tl.constexpr, PDL: tl.constexpr):
    """The second half: add the parts and begin the next layer (LAST: hand the row to the heads), spread by columns."""
    follow(PDL)
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    b, r = m // COUNT, FIRST + m % COUNT
    c = tl.arange(0, CP)
    real = m < B * COUNT
    at = (b * ROWS + r)[:, None].to(tl.int64) * C + c[None, :]
    rows = tl.load(x + at, mask=real[:, None] & (c < C)[None, :], other=0.0)
    for part in tl.static_range(PARTS):
        rows += tl.load(parts + part * B * ROWS * C + at, mask=real[:, None] & (c < C)[None, :], other=0.0)
    slot, offset, position, valid = place_rows(b, r, real, state, pend_slots, clock, K, RING, COLS, PREFILL)
    if tl.max(valid.to(tl.int32), axis=0) == 0:
        return
    mask = valid[:, None] & (c < C)[None, :]
    if LAST:
        tl.store(last + b[:, None] * C + c[None, :], rows, mask=mask)
    else:
        if tl.program_id(1) == 0:
            tl.store(x_next + at, rows, mask=mask)
        store_columns(normed(rows, eps, C).to(q.dtype.element_ty), wqk, wv, frequencies, q, keys, values, b, r, slot,
                      offset, position, valid, c, tl.program_id(1), ROWS, HEADS, RING, TOKENS, C, D, NB, VB, PRECISION)


@triton.jit
def read_heads(last, logits, losses, wl, wt, state, eps, B, VOCABULARY: tl.constexpr, K: tl.constexpr,
               COLS: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, BM: tl.constexpr, NB: tl.constexpr,
               PRECISION: tl.constexpr, PDL: tl.constexpr):
    """Logits (B, K, vocabulary) and predicted losses (B, K) of the newest row; NB columns of one head a program."""
    follow(PDL)
    head = tl.program_id(1)
    b = tl.program_id(0) * BM + tl.arange(0, BM)
    active = tl.load(state + b * COLS + ACTIVE, mask=b < B, other=0) > 0
    if tl.max(active.to(tl.int32), axis=0) == 0:
        return
    c = tl.arange(0, CP)
    rows = tl.load(last + b[:, None] * C + c[None, :], mask=active[:, None] & (c < C)[None, :], other=0.0)
    rows = normed(rows, eps, C)
    xn = rows.to(wl.dtype.element_ty)
    columns = tl.program_id(2) * NB + tl.arange(0, NB)
    values = project(xn, wl + head * VOCABULARY, c, columns, K * VOCABULARY, VOCABULARY, C, PRECISION)
    to = logits + (b[:, None] * K + head) * VOCABULARY + columns[None, :]
    tl.store(to, values, mask=active[:, None] & (columns < VOCABULARY)[None, :])
    if tl.program_id(2) > 0:
        return
    weight = tl.load(wt + head * C + c, mask=c < C, other=0.0).to(tl.float32)
    tl.store(losses + b * K + head, tl.sum(xn.to(tl.float32) * weight[None, :], axis=1), mask=active)


@triton.jit
def first_best(scores, index):
    """Index of the largest score, the first of equals: one maximum over (score, -index) in 64 bits."""
    bits = scores.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # float order as integer order
    best = tl.max((ordered.to(tl.int64) << 32) | (0x7FFFFFFF - index).to(tl.int64), axis=0)
    return 0x7FFFFFFF - (best & 0x7FFFFFFF).to(tl.int32)


@triton.jit
def choose(logits, losses, taken, state, frame_len, clock, requirements, ids, pend_ids, pend_slots, out_ids, out_chosen,
           out_loss, running, seed, temperature, B, PATCHES: tl.constexpr, PB: tl.constexpr, V: tl.constexpr,
           K: tl.constexpr, KP: tl.constexpr, SLOTS_OUT: tl.constexpr, SB: tl.constexpr, RING: tl.constexpr,
           CHUNK: tl.constexpr, COLS: tl.constexpr, PREFILL: tl.constexpr, STOPS: tl.constexpr, SAMPLES: tl.constexpr,
           PDL: tl.constexpr):
    """Take a group of ids for one clip: no repeats, budget, stop rule; then prepare the clip's next pass."""
    follow(PDL)
    b = tl.program_id(0)
    row = state + b * COLS
    t, frame = tl.load(clock), tl.load(clock + 1)
    out = (t * B + b) * SLOTS_OUT
    if PREFILL:
        every = tl.arange(0, SB)
        tl.store(out_ids + out + every, tl.zeros_like(every), mask=every < SLOTS_OUT)
        tl.store(out_chosen + out + every, tl.zeros_like(every).to(tl.int8), mask=every < SLOTS_OUT)
        tl.store(out_loss + out + every, tl.full((SB,), float("nan"), tl.float32), mask=every < SLOTS_OUT)
        tl.debug_barrier()
    if tl.load(row + ACTIVE) == 0:
        if PREFILL:
            tl.store(row + PEND_N, 0)  # a frame with no budget
        return
    patch = tl.arange(0, PB)
    if PREFILL:
        gone = patch >= PATCHES
    else:
        gone = (patch >= PATCHES) | (tl.load(taken + b * PATCHES + patch, mask=patch < PATCHES, other=1) > 0)
    room, used = tl.load(row + ROOM), tl.load(row + SLOTS)
    need = tl.load(requirements + b * CHUNK + t)
    slot = tl.arange(0, KP)
    group = tl.zeros((KP,), tl.int32)
    for i in tl.static_range(K):
        scores = tl.load(logits + (b * K + i) * (PATCHES + 1) + patch, mask=patch < PATCHES, other=float("-inf"))
        if SAMPLES:
            number = ((frame * 1024 + used + i) * B + b) * PB + patch
            uniform = tl.maximum(tl.rand(tl.load(seed), number), 1e-7)
            scores = scores / tl.load(temperature) - tl.log(-tl.log(uniform))
        id = first_best(tl.where(gone, float("-inf"), scores), patch)
        gone = gone | (patch == id)
        group = tl.where(slot == i, id, group)
    loss = tl.load(losses + b * K + slot, mask=slot < K, other=0.0)
    within = slot < tl.minimum(room, K)
    met = slot < 0
    if STOPS:
        met = within & (loss <= need)
        if PREFILL:
            met = met & (slot > 0)
    keep = within & ~met
    met_any = tl.max(met.to(tl.int32), axis=0)
    kept = tl.sum(keep.to(tl.int32), axis=0)
    place = tl.cumsum(keep.to(tl.int32), axis=0) - 1
    tl.store(out_ids + out + used + slot, group, mask=within)
    tl.store(out_chosen + out + used + slot, keep.to(tl.int8), mask=within)
    tl.store(out_loss + out + used + slot, loss, mask=within)
    tl.store(pend_ids + b * K + place, group, mask=keep)
    tl.store(pend_slots + b * K + place, slot, mask=keep)
    tl.store(ids + b * K + slot, group, mask=slot < K)
    tl.store(taken + b * PATCHES + patch, gone.to(tl.int8), mask=patch < PATCHES)
    goes_on = (room > K) & (met_any == 0)
    tl.store(row + ACTIVE, goes_on.to(tl.int32))
    tl.store(row + PEND_N, tl.where(goes_on, 0, kept))
    tl.store(row + ROOM, room - K)
    tl.store(row + SLOTS, used + K)
    tl.store(row + GROUPS, tl.load(row + GROUPS) + 1)
    if goes_on:  # the ring slot holds the group once the next pass has run
        length = frame_len + b * RING + frame % RING
        held = tl.load(length)
        tl.store(row + STEP_OFFSET, held)
        tl.store(row + TOTAL, tl.load(row + TOTAL) + K)
        tl.store(length, held + K)
    elif STOPS:
        tl.atomic_add(running, -1)
