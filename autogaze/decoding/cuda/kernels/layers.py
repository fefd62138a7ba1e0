"""From attention to the next layer: output projection, MLP, next queries, keys and values."""

from __future__ import annotations

import triton
import triton.language as tl

from autogaze.decoding.cuda.kernels.rows import (
    load_columns,
    load_pair,
    load_share,
    normed,
    project,
    store_pair,
    store_qkv,
    store_share,
    times,
)
from autogaze.decoding.cuda.kernels.state import follow, overlap, place_rows


@triton.jit
def add_attention(rows_a, rows_b, attended, wo, b, r, valid, ca, cb, ROWS, HEADS: tl.constexpr, C: tl.constexpr,
                  D: tl.constexpr, KB: tl.constexpr, PRECISION: tl.constexpr):
    """Rows plus the output projection of their attention."""
    for n in range(0, C, KB):
        columns = n + tl.arange(0, KB)
        head, d = columns // D, columns % D
        at = ((b[:, None] * HEADS + head[None, :]) * ROWS + r[:, None]).to(tl.int64) * D + d[None, :]
        part = tl.load(attended + at, mask=valid[:, None] & (columns < C)[None, :], other=0.0)
        wa, wb = load_pair(wo, columns * C, columns < C, ca, cb, C)
        rows_a = tl.dot(part, wa, rows_a, input_precision=PRECISION)
        rows_b = tl.dot(part, wb, rows_b, input_precision=PRECISION)
    return rows_a, rows_b


@triton.jit
def activated(gate, up, dtype: tl.constexpr):
    """Hidden units of the SwiGLU MLP."""
    return (gate * tl.sigmoid(gate) * up).to(dtype)


@triton.jit(do_not_specialize=["B", "ROWS", "FIRST", "COUNT", "RING", "TOKENS"])
def close_layer(x, last, q, keys, values, attended, wo, wg, wu, wd, wqk, wv, frequencies, state, clock, eps, B, ROWS,
                FIRST, COUNT, RING, TOKENS, K: tl.constexpr, HEADS: tl.constexpr, C: tl.constexpr, CA: tl.constexpr,
                CB: tl.constexpr, D: tl.constexpr, HIDDEN: tl.constexpr, BM: tl.constexpr, HB: tl.constexpr,
                NB: tl.constexpr, PREFILL: tl.constexpr, LAST: tl.constexpr, PRECISION: tl.constexpr,
                PDL: tl.constexpr):
    """Finish a layer for COUNT rows a clip from FIRST on, and begin the next (LAST: hand the row to the heads)."""
    overlap(PDL)
    follow(PDL)
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    b, r = m // COUNT, FIRST + m % COUNT
    slot, offset, position, valid = place_rows(b, r, m < B * COUNT, state, clock, RING, K, PREFILL)
    if tl.max(valid.to(tl.int32), axis=0) == 0:
        return
    ca, cb = tl.arange(0, CA), CA + tl.arange(0, CB)
    at = (b * ROWS + r).to(tl.int64) * C
    rows_a, rows_b = load_pair(x, at, valid, ca, cb, C)
    rows_a, rows_b = add_attention(rows_a, rows_b, attended, wo, b, r, valid, ca, cb, ROWS, HEADS, C, D, HB, PRECISION)
    xa, xb = normed(rows_a, rows_b, q.dtype.element_ty, eps, C)
    for n in range(0, HIDDEN, HB):
        units = n + tl.arange(0, HB)
        gate = project(xa, xb, wg, ca, cb, units, HIDDEN, HIDDEN, C, PRECISION)
        up = project(xa, xb, wu, ca, cb, units, HIDDEN, HIDDEN, C, PRECISION)
        hidden = activated(gate, up, xa.dtype)
        wa, wb = load_pair(wd, units * C, units < HIDDEN, ca, cb, C)
        rows_a = tl.dot(hidden, wa, rows_a, input_precision=PRECISION)
        rows_b = tl.dot(hidden, wb, rows_b, input_precision=PRECISION)
    if LAST:
        store_pair(last, b * C, rows_a, rows_b, valid, ca, cb, C)
    else:
        store_pair(x, at, rows_a, rows_b, valid, ca, cb, C)
        xa, xb = normed(rows_a, rows_b, q.dtype.element_ty, eps, C)
        store_qkv(xa, xb, wqk, wv, frequencies, q, keys, values, b, r, slot, offset, position, valid, ca, cb, ROWS,
                  RING, TOKENS, HEADS, C, D, NB, PRECISION)


@triton.jit(do_not_specialize=["B", "ROWS", "FIRST", "COUNT", "RING"])
def mix_rows(x, x_next, parts, attended, wo, wg, wu, wd, state, clock, eps, B, ROWS, FIRST, COUNT, RING,
             K: tl.constexpr, HEADS: tl.constexpr, C: tl.constexpr, CA: tl.constexpr, CB: tl.constexpr,
             D: tl.constexpr, HIDDEN: tl.constexpr, BM: tl.constexpr, HB: tl.constexpr, PREFILL: tl.constexpr,
             PRECISION: tl.constexpr, PDL: tl.constexpr):
    """Few rows: the first half of `close_layer`, spread over processors by hidden units; each adds one part."""
    overlap(PDL)
    ca, cb = tl.arange(0, CA), CA + tl.arange(0, CB)
    units = tl.program_id(1) * HB + tl.arange(0, HB)
    gate_a, gate_b = load_columns(wg, ca, cb, units, HIDDEN, HIDDEN, C)
    up_a, up_b = load_columns(wu, ca, cb, units, HIDDEN, HIDDEN, C)
    down_a, down_b = load_pair(wd, units * C, units < HIDDEN, ca, cb, C)
    follow(PDL)
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    b, r = m // COUNT, FIRST + m % COUNT
    real = m < B * COUNT
    at = (b * ROWS + r).to(tl.int64) * C
    rows_a, rows_b = load_pair(x, at, real, ca, cb, C)
    _, _, _, valid = place_rows(b, r, real, state, clock, RING, K, PREFILL)
    if tl.max(valid.to(tl.int32), axis=0) == 0:
        return
    rows_a, rows_b = add_attention(rows_a, rows_b, attended, wo, b, r, valid, ca, cb, ROWS, HEADS, C, D, HB, PRECISION)
    if tl.program_id(1) == 0:
        store_pair(x_next, at, rows_a, rows_b, valid, ca, cb, C)
    xa, xb = normed(rows_a, rows_b, wg.dtype.element_ty, eps, C)
    hidden = activated(times(xa, xb, gate_a, gate_b, PRECISION), times(xa, xb, up_a, up_b, PRECISION), xa.dtype)
    part_a = tl.dot(hidden, down_a, input_precision=PRECISION)
    part_b = tl.dot(hidden, down_b, input_precision=PRECISION)
    store_pair(parts + tl.program_id(1).to(tl.int64) * B * ROWS * C, at, part_a, part_b, valid, ca, cb, C)


@triton.jit(do_not_specialize=["B", "ROWS", "FIRST", "COUNT", "RING", "TOKENS"])
def next_layer(x, x_next, parts, last, q, keys, values, wqk, wv, frequencies, state, clock, eps, B, ROWS, FIRST, COUNT,
               RING, TOKENS, K: tl.constexpr, HEADS: tl.constexpr, C: tl.constexpr, CA: tl.constexpr,
               CB: tl.constexpr, D: tl.constexpr, PARTS: tl.constexpr, BM: tl.constexpr, NB: tl.constexpr,
               PREFILL: tl.constexpr, LAST: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr):
    """The second half: add the parts and begin the next layer (LAST: hand the row to the heads), spread by columns."""
    overlap(PDL)
    ca, cb = tl.arange(0, CA), CA + tl.arange(0, CB)
    if not LAST:
        la, lb, ha, hb, kla, klb, kha, khb = load_share(wqk, wv, ca, cb, tl.program_id(1), HEADS, C, D, NB)
    follow(PDL)
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    b, r = m // COUNT, FIRST + m % COUNT
    real = m < B * COUNT
    at = (b * ROWS + r).to(tl.int64) * C
    rows_a, rows_b = load_pair(x, at, real, ca, cb, C)
    for part in tl.static_range(PARTS):
        part_a, part_b = load_pair(parts + part * B * ROWS * C, at, real, ca, cb, C)
        rows_a, rows_b = rows_a + part_a, rows_b + part_b
    slot, offset, position, valid = place_rows(b, r, real, state, clock, RING, K, PREFILL)
    if tl.max(valid.to(tl.int32), axis=0) == 0:
        return
    if LAST:
        store_pair(last, b * C, rows_a, rows_b, valid, ca, cb, C)
    else:
        if tl.program_id(1) == 0:
            store_pair(x_next, at, rows_a, rows_b, valid, ca, cb, C)
        xa, xb = normed(rows_a, rows_b, q.dtype.element_ty, eps, C)
        store_share(xa, xb, la, lb, ha, hb, kla, klb, kha, khb, tl.program_id(1), frequencies, q, keys, values, b, r,
                    slot, offset, position, valid, ROWS, RING, TOKENS, HEADS, D, NB, PRECISION)
