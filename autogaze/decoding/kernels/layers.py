"""From attention to the next layer: output projection, MLP, next queries, keys and values."""

from __future__ import annotations

import triton
import triton.language as tl

from autogaze.decoding.kernels.rows import normed, project, store_columns, store_qkv
from autogaze.decoding.kernels.state import follow, place_rows


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
def gated(xn, wg, wu, wd, columns, c, HIDDEN: tl.constexpr, C: tl.constexpr, PRECISION: tl.constexpr):
    """What some hidden units of the SwiGLU MLP add to the rows."""
    gate = project(xn, wg, c, columns, HIDDEN, HIDDEN, C, PRECISION)
    up = project(xn, wu, c, columns, HIDDEN, HIDDEN, C, PRECISION)
    hidden = (gate * tl.sigmoid(gate) * up).to(wd.dtype.element_ty)
    w = tl.load(wd + columns[:, None] * C + c[None, :], mask=(columns < HIDDEN)[:, None] & (c < C)[None, :], other=0.0)
    return tl.dot(hidden, w, input_precision=PRECISION)


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
               FIRST, COUNT, K: tl.constexpr, HEADS: tl.constexpr, RING: tl.constexpr, TOKENS: tl.constexpr,
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
