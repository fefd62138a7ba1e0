"""Scores of patches at their own places, on the device; see `autogaze.salience`."""

from __future__ import annotations

import triton
import triton.language as tl

from autogaze.decoding.kernels.pairs import load_pair
from autogaze.decoding.kernels.rows import load_columns, times
from autogaze.decoding.kernels.state import follow, overlap


@triton.jit
def rated(xa, xb, wa, wb, bias, wr, PRECISION: tl.constexpr):
    """What some hidden units (their weights as two tiles) add to the ratings of places."""
    hidden = times(xa, xb, wa, wb, PRECISION) + bias[None, :]
    return tl.dot((hidden * tl.sigmoid(hidden)).to(wr.dtype), wr, input_precision=PRECISION)


@triton.jit
def load_units(wh, bh, wr, ca, cb, first, C: tl.constexpr, HB: tl.constexpr, SP: tl.constexpr):
    """Weights of HB hidden units: into them as two tiles, their bias, and out of them."""
    unit = first + tl.arange(0, HB)
    wa, wb = load_columns(wh, ca, cb, unit, C, C, C)
    return wa, wb, tl.load(bh + unit), tl.load(wr + unit[:, None] * SP + tl.arange(0, SP)[None, :])


@triton.jit
def rate_places(x, ratings, wh, bh, wr, B, ROWS, V: tl.constexpr, K: tl.constexpr, C: tl.constexpr, CA: tl.constexpr,
                CB: tl.constexpr, HB: tl.constexpr, SP: tl.constexpr, BM: tl.constexpr, SHARED: tl.constexpr,
                PRECISION: tl.constexpr, PDL: tl.constexpr):
    """Ratings (shares, B, V, SP) of BM places by scale, without bias, from the rows that a prefill begins with. SHARED:
    few places, so the hidden units are spread over the second axis of the grid, and their parts added up later."""
    overlap(PDL)
    ca, cb = tl.arange(0, CA), CA + tl.arange(0, CB)
    share = tl.program_id(1)
    if SHARED:
        wa, wb, bias, out = load_units(wh, bh, wr, ca, cb, share * HB, C, HB, SP)
    follow(PDL)
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    real = m < B * V
    rows_a, rows_b = load_pair(x, (m // V * ROWS + K + m % V).to(tl.int64) * C, real, ca, cb, C)
    xa, xb = rows_a.to(wh.dtype.element_ty), rows_b.to(wh.dtype.element_ty)
    if SHARED:
        found = rated(xa, xb, wa, wb, bias, out, PRECISION)
    else:
        found = tl.zeros((BM, SP), tl.float32)
        for first in range(0, C, HB):
            wa, wb, bias, out = load_units(wh, bh, wr, ca, cb, first, C, HB, SP)
            found += rated(xa, xb, wa, wb, bias, out, PRECISION)
    to = ratings + (share * B * V + m)[:, None] * SP + tl.arange(0, SP)[None, :]
    tl.store(to, found, mask=real[:, None])


@triton.jit
def score_patches(ratings, salience, places, scales, br, B, V: tl.constexpr, MOST: tl.constexpr, SP: tl.constexpr,
                  PATCHES: tl.constexpr, BP: tl.constexpr, SHARES: tl.constexpr, PDL: tl.constexpr):
    """Scores (B, PATCHES) of BP patches of a clip: the mean rating of the places that each covers, at its scale.
    `places` (PATCHES, MOST) lists them, -1 past the last."""
    overlap(PDL)
    b, patch = tl.program_id(0), tl.program_id(1) * BP + tl.arange(0, BP)
    real = patch < PATCHES
    covered = tl.load(places + patch[:, None] * MOST + tl.arange(0, MOST)[None, :], mask=real[:, None], other=-1)
    scale = tl.load(scales + patch, mask=real, other=0)
    bias = tl.load(br + scale)
    inside = covered >= 0
    count = tl.maximum(tl.sum(inside.to(tl.float32), axis=1), 1.0)
    follow(PDL)
    total = tl.zeros((BP,), tl.float32)
    for share in tl.static_range(SHARES):
        at = ((share * B + b) * V + covered) * SP + scale[:, None]
        total += tl.sum(tl.load(ratings + at, mask=inside, other=0.0), axis=1)
    tl.store(salience + b * PATCHES + patch, total / count + bias, mask=real)
