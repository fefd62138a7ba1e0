"""Triton kernels that decode many clips side by side, without a host round trip inside a frame.

One pass over the decoder is: `open_rows` (embeddings, first norm, first q/k/v), then for every layer `attend` (split
over the frames in the window) and `close_layer` (join the splits, output projection, MLP, and the next layer's
q/k/v), then `read_heads` and `choose`. A pass is a prefill (the last frame's final group and a frame's visual tokens)
or a step (one group of K ids). In the last layer only the newest row is computed: nothing else is read from it.

Keys live in a ring of frames, (layer, clip, head, frame, token, head_dim), so a window of frames slides without
a copy. What a pass has to know about a clip stands in `state`, which the kernels keep themselves. A clip that is done with
its frame leaves every kernel at its first instruction.
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
def begin_frame(state, frame_len, clock, budgets, in_step, running, B, V: tl.constexpr, K: tl.constexpr, RING: tl.constexpr,
                CHUNK: tl.constexpr, COLS: tl.constexpr, BLOCK: tl.constexpr):
    """Advance the clock by a frame and prepare every clip for the prefill. One program."""
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
    w = tl.load(weight + c[:, None] * width + columns[None, :], mask=(c < C)[:, None] & (columns < limit)[None, :], other=0.0)
    return tl.dot(xn, w, input_precision=PRECISION)


@triton.jit
def store_qkv(xn, wqk, wv, frequencies, q, keys, values, b, r, slot, offset, position, valid, c, ROWS, HEADS: tl.constexpr,
              RING: tl.constexpr, TOKENS: tl.constexpr, C: tl.constexpr, D: tl.constexpr, NB: tl.constexpr,
              VB: tl.constexpr, PRECISION: tl.constexpr):
    """Queries to `q` (B, heads, rows, D), rotated keys and values into the ring."""
    HALF: tl.constexpr = D // 2
    WIDTH: tl.constexpr = HEADS * HALF
    dtype = q.dtype.element_ty
    for n in range(0, WIDTH, NB):
        columns = n + tl.arange(0, NB)
        inside = columns < WIDTH
        head, j = columns // HALF, columns % HALF
        angle = position.to(tl.float32)[:, None] * tl.load(frequencies + j)[None, :]
        cos, sin = tl.cos(angle), tl.sin(angle)
        mask = valid[:, None] & inside[None, :]
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
    for n in range(0, HEADS * D, VB):
        columns = n + tl.arange(0, VB)
        head, j = columns // D, columns % D
        v = project(xn, wv, c, columns, HEADS * D, HEADS * D, C, PRECISION)
        place = ((b[:, None].to(tl.int64) * HEADS + head[None, :]) * RING + slot[:, None]) * TOKENS + offset[:, None]
        tl.store(values + place * D + j[None, :], v.to(dtype), mask=valid[:, None] & (columns < HEADS * D)[None, :])


@triton.jit
def open_rows(x, q, keys, values, wqk, wv, frequencies, embedding, visual, ids, pend_slots, state, clock, eps, B, ROWS,
              V: tl.constexpr, K: tl.constexpr, HEADS: tl.constexpr, RING: tl.constexpr, TOKENS: tl.constexpr,
              CHUNK: tl.constexpr, COLS: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, D: tl.constexpr,
              BM: tl.constexpr, NB: tl.constexpr, VB: tl.constexpr, PREFILL: tl.constexpr, PRECISION: tl.constexpr):
    """Embed the rows of a pass, and their q/k/v of the first layer."""
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
    tl.store(x + m[:, None].to(tl.int64) * C + c[None, :], rows, mask=valid[:, None] & inside)
    xn = normed(rows, eps, C).to(q.dtype.element_ty)
    store_qkv(xn, wqk, wv, frequencies, q, keys, values, b, r, slot, offset, position, valid, c, ROWS, HEADS, RING,
              TOKENS, C, D, NB, VB, PRECISION)


@triton.jit
def attend(q, keys, values, out, peak, mass, frame_len, pend_slots, state, clock, scale, B, ROWS, FIRST, COUNT,
           K: tl.constexpr, WINDOW: tl.constexpr, HEADS: tl.constexpr, RING: tl.constexpr, TOKENS: tl.constexpr,
           COLS: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, FRAMES: tl.constexpr,
           PREFILL: tl.constexpr, PRECISION: tl.constexpr):
    """Attention of COUNT rows from FIRST on over FRAMES ring slots: unnormalised output, peak and mass of the split."""
    bh, tile, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    b, head = bh // HEADS, bh % HEADS
    frame = tl.load(clock + 1)
    filled = tl.minimum(frame + 1, RING)
    if split * FRAMES >= filled:
        return
    if not PREFILL:
        if tl.load(state + b * COLS + ACTIVE) == 0:
            return
    local = tile * BM + tl.arange(0, BM)
    r = FIRST + local
    bs = tl.zeros_like(r) + b
    row_slot, row_offset, _, valid = place_rows(bs, r, local < COUNT, state, pend_slots, clock, K, RING, COLS, PREFILL)
    d = tl.arange(0, D)
    query = tl.load(q + ((b * HEADS + head) * ROWS + r)[:, None] * D + d[None, :], mask=valid[:, None], other=0.0)
    current, oldest = frame % RING, (frame + 1) % RING
    evicting = (frame >= WINDOW) & (RING > WINDOW)  # the oldest slot is only for the last frame's final group
    on_current = row_slot == current
    top = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, D), tl.float32)
    for w in range(split * FRAMES, tl.minimum(split * FRAMES + FRAMES, filled)):
        length = tl.load(frame_len + b * RING + w)
        base = ((b.to(tl.int64) * HEADS + head) * RING + w) * TOKENS
        hidden = ((w == current) & ~on_current) | ((w == oldest) & evicting & on_current)
        limit = tl.where(w == row_slot, row_offset, tl.where(hidden, -1, TOKENS))
        for n in range(0, length, BN):
            token = n + tl.arange(0, BN)
            k = tl.load(keys + (base + token)[None, :] * D + d[:, None], mask=(token < length)[None, :], other=0.0)
            s = tl.dot(query, k, input_precision=PRECISION) * scale
            s = tl.where((token < length)[None, :] & (token[None, :] <= limit[:, None]), s, float("-inf"))
            new_top = tl.maximum(top, tl.max(s, axis=1))
            safe = tl.where(new_top == float("-inf"), 0.0, new_top)
            p = tl.exp2(s - safe[:, None])
            fade = tl.exp2(top - safe)
            total = total * fade + tl.sum(p, axis=1)
            v = tl.load(values + (base + token)[:, None] * D + d[None, :], mask=(token < length)[:, None], other=0.0)
            acc = acc * fade[:, None] + tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
            top = new_top
    at = ((split * B + b) * HEADS + head) * ROWS + r
    tl.store(peak + at, top, mask=valid)
    tl.store(mass + at, total, mask=valid)
    tl.store(out + at[:, None].to(tl.int64) * D + d[None, :], acc, mask=valid[:, None])


@triton.jit
def close_layer(x, last, q, keys, values, out, peak, mass, wo, wg, wu, wd, wqk, wv, frequencies, pend_slots, state, clock,
                eps, B, ROWS, FIRST, COUNT, K: tl.constexpr, HEADS: tl.constexpr, RING: tl.constexpr,
                TOKENS: tl.constexpr, COLS: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, D: tl.constexpr,
                HIDDEN: tl.constexpr, BM: tl.constexpr, HB: tl.constexpr, NB: tl.constexpr, VB: tl.constexpr,
                FRAMES: tl.constexpr, PREFILL: tl.constexpr, LAST: tl.constexpr, PRECISION: tl.constexpr):
    """Finish a layer for COUNT rows a clip from FIRST on, and begin the next (LAST: hand the row to the heads)."""
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    b, r = m // COUNT, FIRST + m % COUNT
    slot, offset, position, valid = place_rows(b, r, m < B * COUNT, state, pend_slots, clock, K, RING, COLS, PREFILL)
    if tl.max(valid.to(tl.int32), axis=0) == 0:
        return
    dtype = q.dtype.element_ty
    c = tl.arange(0, CP)
    d = tl.arange(0, D)
    inside = (c < C)[None, :]
    filled = tl.minimum(tl.load(clock + 1) + 1, RING)
    splits = (filled + FRAMES - 1) // FRAMES
    at_x = (b * ROWS + r)[:, None].to(tl.int64) * C + c[None, :]
    rows = tl.load(x + at_x, mask=valid[:, None] & inside, other=0.0)
    for head in range(HEADS):
        top = tl.full((BM,), float("-inf"), tl.float32)
        total = tl.zeros((BM,), tl.float32)
        acc = tl.zeros((BM, D), tl.float32)
        for split in range(splits):
            at = ((split * B + b) * HEADS + head) * ROWS + r
            its_top = tl.load(peak + at, mask=valid, other=float("-inf"))
            new_top = tl.maximum(top, its_top)
            safe = tl.where(new_top == float("-inf"), 0.0, new_top)
            fade, its = tl.exp2(top - safe), tl.exp2(its_top - safe)
            part = tl.load(out + at[:, None].to(tl.int64) * D + d[None, :], mask=valid[:, None], other=0.0)
            acc = acc * fade[:, None] + part * its[:, None]
            total = total * fade + tl.load(mass + at, mask=valid, other=0.0) * its
            top = new_top
        attended = (acc / tl.where(total > 0, total, 1.0)[:, None]).to(dtype)
        w = tl.load(wo + (head * D + d)[:, None] * C + c[None, :], mask=inside, other=0.0)
        rows += tl.dot(attended, w, input_precision=PRECISION)
    xn = normed(rows, eps, C).to(dtype)
    for n in range(0, HIDDEN, HB):
        columns = n + tl.arange(0, HB)
        gate = project(xn, wg, c, columns, HIDDEN, HIDDEN, C, PRECISION)
        up = project(xn, wu, c, columns, HIDDEN, HIDDEN, C, PRECISION)
        hidden = (gate * tl.sigmoid(gate) * up).to(dtype)
        w = tl.load(wd + columns[:, None] * C + c[None, :], mask=(columns < HIDDEN)[:, None] & inside, other=0.0)
        rows += tl.dot(hidden, w, input_precision=PRECISION)
    if LAST:
        tl.store(last + b[:, None] * C + c[None, :], rows, mask=valid[:, None] & inside)
    else:
        tl.store(x + at_x, rows, mask=valid[:, None] & inside)
        store_qkv(normed(rows, eps, C).to(dtype), wqk, wv, frequencies, q, keys, values, b, r, slot, offset, position,
                  valid, c, ROWS, HEADS, RING, TOKENS, C, D, NB, VB, PRECISION)


@triton.jit
def read_heads(last, logits, losses, wl, wt, state, eps, B, VOCABULARY: tl.constexpr, K: tl.constexpr,
               COLS: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, BM: tl.constexpr, NB: tl.constexpr,
               PRECISION: tl.constexpr):
    """Logits (B, K, vocabulary) and predicted losses (B, K) of the newest row; one head a program."""
    head = tl.program_id(1)
    b = tl.program_id(0) * BM + tl.arange(0, BM)
    active = tl.load(state + b * COLS + ACTIVE, mask=b < B, other=0) > 0
    if tl.max(active.to(tl.int32), axis=0) == 0:
        return
    c = tl.arange(0, CP)
    rows = tl.load(last + b[:, None] * C + c[None, :], mask=active[:, None] & (c < C)[None, :], other=0.0)
    rows = normed(rows, eps, C)
    xn = rows.to(wl.dtype.element_ty)
    for n in range(0, VOCABULARY, NB):
        columns = n + tl.arange(0, NB)
        values = project(xn, wl + head * VOCABULARY, c, columns, K * VOCABULARY, VOCABULARY, C, PRECISION)
        to = logits + (b[:, None] * K + head) * VOCABULARY + columns[None, :]
        tl.store(to, values, mask=active[:, None] & (columns < VOCABULARY)[None, :])
    weight = tl.load(wt + head * C + c, mask=c < C, other=0.0).to(tl.float32)
    tl.store(losses + b * K + head, tl.sum(xn.to(tl.float32) * weight[None, :], axis=1), mask=active)


@triton.jit
def choose(logits, losses, taken, state, frame_len, clock, requirements, ids, pend_ids, pend_slots, out_ids, out_chosen,
           out_loss, running, seed, temperature, B, PATCHES: tl.constexpr, PB: tl.constexpr, V: tl.constexpr,
           K: tl.constexpr, KP: tl.constexpr, SLOTS_OUT: tl.constexpr, SB: tl.constexpr, RING: tl.constexpr,
           CHUNK: tl.constexpr, COLS: tl.constexpr, PREFILL: tl.constexpr, STOPS: tl.constexpr, SAMPLES: tl.constexpr):
    """Take a group of ids for one clip: no repeats, budget, stop rule; then prepare the clip's next pass."""
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
    kept, met_any = 0, 0
    for i in range(K):
        scores = tl.load(logits + (b * K + i) * (PATCHES + 1) + patch, mask=patch < PATCHES, other=float("-inf"))
        if SAMPLES:
            number = ((frame * 1024 + used + i) * B + b) * PB + patch
            uniform = tl.maximum(tl.rand(tl.load(seed), number), 1e-7)
            scores = scores / tl.load(temperature) - tl.log(-tl.log(uniform))
        scores = tl.where(gone, float("-inf"), scores)
        id = tl.argmax(scores, axis=0)
        gone = gone | (patch == id)
        loss = tl.load(losses + b * K + i)
        within = i < room
        met = 0
        if STOPS:
            met = ((loss <= need) & within).to(tl.int32)
            if PREFILL:
                met = tl.where(i == 0, 0, met)
        met_any = tl.maximum(met_any, met)
        keep = within & (met == 0)
        tl.store(out_ids + out + used + i, id, mask=within)
        tl.store(out_chosen + out + used + i, keep.to(tl.int8), mask=within)
        tl.store(out_loss + out + used + i, loss, mask=within)
        tl.store(pend_ids + b * K + kept, id, mask=keep)
        tl.store(pend_slots + b * K + kept, i, mask=keep)
        tl.store(ids + b * K + i, id)
        kept += keep.to(tl.int32)
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
