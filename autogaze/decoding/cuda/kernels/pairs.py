"""Rows as pairs of tiles.

The sides of a tile are powers of two, and a model's width need not be one: rows are held as two tiles, of CA and CB
columns (192 = 128 + 64), `a` and `b` below; `ca` and `cb` are their columns, and those from C on are zero.
"""

from __future__ import annotations

import triton
import triton.language as tl


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
