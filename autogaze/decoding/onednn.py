"""Products and attention on a CPU through oneDNN, in float32.

PyTorch takes its matrix products from the BLAS it was built with, which on AMD processors leaves half of AVX-512
unused: 100 against 200 GFLOP/s on one core of an EPYC with PyTorch 2.11. oneDNN is reached only through an operator
that `torch.compile` uses (`_linear_pointwise`, there since PyTorch 2.0). Where it is missing, `fits` says so and the
ordinary operators do the work.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

MANY_TOKENS, MANY_KEYS = 64, 512  # from here on it is the faster one
ROWS = 104  # queries whose scores are made at once: they stay in the second-level cache


def fits(weight: Tensor) -> bool:
    """Whether oneDNN can compute with tensors such as this one."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def casts() -> bool:
    """Whether autocast is on, which casts what PyTorch's own operators are given, and not what these are."""
    return torch.is_autocast_enabled("cpu")


def multiply(x: Tensor, weight: Tensor) -> Tensor:
    """x (..., n) times the transpose of weight (m, n), which may be packed by `to_mkldnn`."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Scaled dot product attention of many queries.

    Args:
        query: (B, heads, n, head_dim) float32; key, value: (B, heads, N, head_dim).
        mask: (n, N) float to add to the scores; zero but in its last n columns.
    """
    if query.shape[2] < MANY_TOKENS or key.shape[2] < MANY_KEYS or casts():
        return F.scaled_dot_product_attention(query, key, value, mask)
    new = query.shape[2]
    query, out = query * query.shape[-1] ** -0.5, torch.empty_like(query, memory_format=torch.contiguous_format)
    recent = mask[:, -new:]
    for clip in range(len(query)):
        for head in range(query.shape[1]):
            for start in range(0, new, ROWS):
                rows = slice(start, start + ROWS)
                scores = multiply(query[clip, head, rows], key[clip, head])
                scores[:, -new:] += recent[rows]
                torch.softmax(scores, dim=-1, out=scores)
                out[clip, head, rows] = multiply(scores, value[clip, head].T)
    return out
