"""Rows of a pass: embeddings, norms, matrices, and queries, keys and values into the ring."""

from __future__ import annotations

import triton
import triton.language as tl

from autogaze.decoding.kernels.state import follow, place_rows


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
                       HEADS: tl.constexpr, RING: tl.constexpr, TOKENS: tl.constexpr, C: tl.constexpr, D: tl.constexpr,
                       NB: tl.constexpr, PRECISION: tl.constexpr):
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
                           HEADS, RING, TOKENS, C, D, NB, PRECISION)
    else:
        store_values(xn, (share - QK_SHARES) * VB, wv, values, b, slot, offset, valid, c, HEADS, RING, TOKENS, C, D, VB,
                     PRECISION)


@triton.jit
def store_qkv(xn, wqk, wv, frequencies, q, keys, values, b, r, slot, offset, position, valid, c, ROWS,
              HEADS: tl.constexpr, RING: tl.constexpr, TOKENS: tl.constexpr, C: tl.constexpr, D: tl.constexpr,
              NB: tl.constexpr, VB: tl.constexpr, PRECISION: tl.constexpr):
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
                      tl.program_id(1), ROWS, HEADS, RING, TOKENS, C, D, NB, VB, PRECISION)
    else:
        store_qkv(xn, wqk, wv, frequencies, q, keys, values, b, r, slot, offset, position, valid, c, ROWS, HEADS, RING,
                  TOKENS, C, D, NB, VB, PRECISION)
