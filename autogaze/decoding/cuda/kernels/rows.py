"""Rows of a pass: embeddings, norms, matrices, and queries, keys and values into the ring.

The sides of a tile are powers of two, and a model's width need not be one: rows are held as two tiles, of CA and CB
columns (192 = 128 + 64), `a` and `b` below; `ca` and `cb` are their columns, and those from C on are zero.
"""

from __future__ import annotations

import triton
import triton.language as tl

from autogaze.decoding.cuda.kernels.state import follow, overlap, place_rows


@triton.jit
def load_pair(source, at, valid, ca, cb, C: tl.constexpr):
    """Rows of C columns as two tiles, from place `at` of each on."""
    a = tl.load(source + at[:, None] + ca[None, :], mask=valid[:, None], other=0.0)
    b = tl.load(source + at[:, None] + cb[None, :], mask=valid[:, None] & (cb < C)[None, :], other=0.0)
    return a, b


@triton.jit
def store_pair(to, at, a, b, valid, ca, cb, C: tl.constexpr):
    """Rows of C columns to place `at` of each."""
    tl.store(to + at[:, None] + ca[None, :], a, mask=valid[:, None])
    tl.store(to + at[:, None] + cb[None, :], b, mask=valid[:, None] & (cb < C)[None, :])


@triton.jit
def normed(a, b, dtype: tl.constexpr, eps, C: tl.constexpr):
    """RMS norm without its weight, which is folded into the matrix that follows. Columns past C are zero."""
    factor = tl.rsqrt((tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1)) / C + eps)[:, None]
    return (a * factor).to(dtype), (b * factor).to(dtype)


@triton.jit
def load_columns(weight, ca, cb, columns, width: tl.constexpr, limit, C: tl.constexpr):
    """Some columns of a (C, width) matrix, those below `limit`, as two tiles."""
    to, inside = weight + columns[None, :], (columns < limit)[None, :]
    a = tl.load(to + ca[:, None] * width, mask=inside, other=0.0)
    b = tl.load(to + cb[:, None] * width, mask=inside & (cb < C)[:, None], other=0.0)
    return a, b


@triton.jit
def times(xa, xb, wa, wb, PRECISION: tl.constexpr):
    """Rows times some columns of a matrix, both given as two tiles."""
    return tl.dot(xb, wb, tl.dot(xa, wa, input_precision=PRECISION), input_precision=PRECISION)


@triton.jit
def project(xa, xb, weight, ca, cb, columns, width: tl.constexpr, limit, C: tl.constexpr, PRECISION: tl.constexpr):
    """Rows times some columns of a (C, width) matrix."""
    wa, wb = load_columns(weight, ca, cb, columns, width, limit, C)
    return times(xa, xb, wa, wb, PRECISION)


@triton.jit
def store_turned(low, high, to, position, frequencies, j, HALF: tl.constexpr, mask):
    """Rotary pairs j, turned by the rows' positions."""
    angle = position.to(tl.float32)[:, None] * tl.load(frequencies + j)[None, :]
    cos, sin = tl.cos(angle), tl.sin(angle)
    tl.store(to, (low * cos - high * sin).to(to.dtype.element_ty), mask=mask)
    tl.store(to + HALF, (high * cos + low * sin).to(to.dtype.element_ty), mask=mask)


@triton.jit
def in_ring(ring, b, head, slot, offset, RING, TOKENS, HEADS: tl.constexpr, D: tl.constexpr):
    """Where keys or values of rows stand, (rows, heads given)."""
    place = ((b[:, None].to(tl.int64) * HEADS + head[None, :]) * RING + slot[:, None]) * TOKENS + offset[:, None]
    return ring + place * D


@triton.jit
def store_queries_keys(xa, xb, n, wqk, frequencies, q, keys, b, r, slot, offset, position, valid, ca, cb, ROWS, RING,
                       TOKENS, HEADS: tl.constexpr, C: tl.constexpr, D: tl.constexpr, NB: tl.constexpr,
                       PRECISION: tl.constexpr):
    """NB pairs of rotated query and key columns from pair n on."""
    HALF: tl.constexpr = D // 2
    WIDTH: tl.constexpr = HEADS * HALF
    columns = n + tl.arange(0, NB)
    head, j = columns // HALF, columns % HALF
    mask = valid[:, None] & (columns < WIDTH)[None, :]
    low = project(xa, xb, wqk, ca, cb, columns, 4 * WIDTH, WIDTH, C, PRECISION)
    high = project(xa, xb, wqk + WIDTH, ca, cb, columns, 4 * WIDTH, WIDTH, C, PRECISION)
    to = q + ((b[:, None] * HEADS + head[None, :]) * ROWS + r[:, None]) * D + j[None, :]
    store_turned(low, high, to, position, frequencies, j, HALF, mask)
    low = project(xa, xb, wqk + 2 * WIDTH, ca, cb, columns, 4 * WIDTH, WIDTH, C, PRECISION)
    high = project(xa, xb, wqk + 3 * WIDTH, ca, cb, columns, 4 * WIDTH, WIDTH, C, PRECISION)
    to = in_ring(keys, b, head, slot, offset, RING, TOKENS, HEADS, D) + j[None, :]
    store_turned(low, high, to, position, frequencies, j, HALF, mask)


@triton.jit
def store_values(v, columns, values, b, slot, offset, valid, RING, TOKENS, HEADS: tl.constexpr, D: tl.constexpr):
    """Some columns of the values."""
    to = in_ring(values, b, columns // D, slot, offset, RING, TOKENS, HEADS, D) + (columns % D)[None, :]
    tl.store(to, v.to(values.dtype.element_ty), mask=valid[:, None] & (columns < HEADS * D)[None, :])


@triton.jit
def load_share(wqk, wv, ca, cb, share, HEADS: tl.constexpr, C: tl.constexpr, D: tl.constexpr, NB: tl.constexpr):
    """Weights of one share of the columns, four times NB: NB pairs of queries and of keys, low and high; or, in the
    second half of the shares, twice NB columns of values and nothing."""
    WIDTH: tl.constexpr = HEADS * D // 2
    SHARES: tl.constexpr = (WIDTH + NB - 1) // NB
    pair = share * NB + tl.arange(0, NB)
    column = 2 * (share - SHARES) * NB + tl.arange(0, NB)
    if share < SHARES:
        low_a, low_b = load_columns(wqk, ca, cb, pair, 4 * WIDTH, WIDTH, C)
        high_a, high_b = load_columns(wqk + WIDTH, ca, cb, pair, 4 * WIDTH, WIDTH, C)
    else:
        low_a, low_b = load_columns(wv, ca, cb, column, 2 * WIDTH, 2 * WIDTH, C)
        high_a, high_b = load_columns(wv, ca, cb, column + NB, 2 * WIDTH, 2 * WIDTH, C)
    key_low_a, key_low_b = load_columns(wqk + 2 * WIDTH, ca, cb, pair, 4 * WIDTH, WIDTH, C)
    key_high_a, key_high_b = load_columns(wqk + 3 * WIDTH, ca, cb, pair, 4 * WIDTH, WIDTH, C)
    return low_a, low_b, high_a, high_b, key_low_a, key_low_b, key_high_a, key_high_b


@triton.jit
def store_share(xa, xb, low_a, low_b, high_a, high_b, key_low_a, key_low_b, key_high_a, key_high_b, share, frequencies,
                q, keys, values, b, r, slot, offset, position, valid, ROWS, RING, TOKENS, HEADS: tl.constexpr,
                D: tl.constexpr, NB: tl.constexpr, PRECISION: tl.constexpr):
    """Multiply the rows by the weights of `load_share`, and store the products."""
    HALF: tl.constexpr = D // 2
    WIDTH: tl.constexpr = HEADS * HALF
    SHARES: tl.constexpr = (WIDTH + NB - 1) // NB
    first = times(xa, xb, low_a, low_b, PRECISION)
    second = times(xa, xb, high_a, high_b, PRECISION)
    if share < SHARES:
        pair = share * NB + tl.arange(0, NB)
        head, j = pair // HALF, pair % HALF
        mask = valid[:, None] & (pair < WIDTH)[None, :]
        to = q + ((b[:, None] * HEADS + head[None, :]) * ROWS + r[:, None]) * D + j[None, :]
        store_turned(first, second, to, position, frequencies, j, HALF, mask)
        first = times(xa, xb, key_low_a, key_low_b, PRECISION)
        second = times(xa, xb, key_high_a, key_high_b, PRECISION)
        to = in_ring(keys, b, head, slot, offset, RING, TOKENS, HEADS, D) + j[None, :]
        store_turned(first, second, to, position, frequencies, j, HALF, mask)
    else:
        column = 2 * (share - SHARES) * NB + tl.arange(0, NB)
        store_values(first, column, values, b, slot, offset, valid, RING, TOKENS, HEADS, D)
        store_values(second, column + NB, values, b, slot, offset, valid, RING, TOKENS, HEADS, D)


@triton.jit
def store_qkv(xa, xb, wqk, wv, frequencies, q, keys, values, b, r, slot, offset, position, valid, ca, cb, ROWS, RING,
              TOKENS, HEADS: tl.constexpr, C: tl.constexpr, D: tl.constexpr, NB: tl.constexpr,
              PRECISION: tl.constexpr):
    """Queries to `q` (B, heads, rows, D), rotated keys and values into the ring: all columns."""
    for n in range(0, HEADS * D // 2, NB):
        store_queries_keys(xa, xb, n, wqk, frequencies, q, keys, b, r, slot, offset, position, valid, ca, cb, ROWS,
                           RING, TOKENS, HEADS, C, D, NB, PRECISION)
    for n in range(0, HEADS * D, 2 * NB):
        columns = n + tl.arange(0, 2 * NB)
        v = project(xa, xb, wv, ca, cb, columns, HEADS * D, HEADS * D, C, PRECISION)
        store_values(v, columns, values, b, slot, offset, valid, RING, TOKENS, HEADS, D)


@triton.jit(do_not_specialize=["B", "ROWS", "RING", "TOKENS"])
def open_rows(x, q, keys, values, wqk, wv, frequencies, embedding, visual, ids, state, clock, eps, B, ROWS, RING,
              TOKENS, V: tl.constexpr, K: tl.constexpr, HEADS: tl.constexpr, CHUNK: tl.constexpr, C: tl.constexpr,
              CA: tl.constexpr, CB: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, NB: tl.constexpr,
              SHARED: tl.constexpr, PREFILL: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr):
    """Embed the rows of a pass, and their q/k/v of the first layer."""
    overlap(PDL)
    ca, cb = tl.arange(0, CA), CA + tl.arange(0, CB)
    if SHARED:  # few rows: the columns are spread over the second axis of the grid
        la, lb, ha, hb, kla, klb, kha, khb = load_share(wqk, wv, ca, cb, tl.program_id(1), HEADS, C, D, NB)
    follow(PDL)
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    b, r = m // ROWS, m % ROWS
    slot, offset, position, valid = place_rows(b, r, m < B * ROWS, state, clock, RING, K, PREFILL)
    if tl.max(valid.to(tl.int32), axis=0) == 0:
        return
    token = valid & (r < K)
    id = tl.load(ids + b * K + r, mask=token, other=0)
    rows_a, rows_b = load_pair(embedding, id * C, token, ca, cb, C)
    rows_a, rows_b = rows_a.to(tl.float32), rows_b.to(tl.float32)
    if PREFILL:
        at = ((b.to(tl.int64) * CHUNK + tl.load(clock)) * V + r - K) * C
        visual_a, visual_b = load_pair(visual, at, valid & (r >= K), ca, cb, C)
        rows_a, rows_b = rows_a + visual_a.to(tl.float32), rows_b + visual_b.to(tl.float32)
    if tl.program_id(1) == 0:
        store_pair(x, m.to(tl.int64) * C, rows_a, rows_b, valid, ca, cb, C)
    xa, xb = normed(rows_a, rows_b, q.dtype.element_ty, eps, C)
    if SHARED:
        store_share(xa, xb, la, lb, ha, hb, kla, klb, kha, khb, tl.program_id(1), frequencies, q, keys, values, b, r,
                    slot, offset, position, valid, ROWS, RING, TOKENS, HEADS, D, NB, PRECISION)
    else:
        store_qkv(xa, xb, wqk, wv, frequencies, q, keys, values, b, r, slot, offset, position, valid, ca, cb, ROWS,
                  RING, TOKENS, HEADS, C, D, NB, PRECISION)
