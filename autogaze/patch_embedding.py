"""The encoder's first layer on a GPU: patches, their projection and its norm, read from the frames in place."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor, nn


@triton.jit
def embed_patches(frames, out, weight, bias, scale, shift, eps, M, H, W, SIDE, SIZE: tl.constexpr, K: tl.constexpr,
                  C: tl.constexpr, CP: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr):
    """BM patches of frames (N, 3, H, W), row by row, to tokens (M, C)."""
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    patch = m % (SIDE * SIDE)
    start = (m // (SIDE * SIDE)).to(tl.int64) * 3 * H * W + (patch // SIDE) * SIZE * W + patch % SIDE * SIZE
    c = tl.arange(0, CP)
    inside = c < C
    tokens = tl.zeros((BM, CP), tl.float32)
    for first in range(0, K, BK):
        k = first + tl.arange(0, BK)
        pixel = k // (SIZE * SIZE) * H * W + k // SIZE % SIZE * W + k % SIZE
        pixels = tl.load(frames + start[:, None] + pixel[None, :], mask=(m < M)[:, None] & (k < K)[None, :], other=0.0)
        w = tl.load(weight + c[None, :] * K + k[:, None], mask=inside[None, :] & (k < K)[:, None], other=0.0)
        tokens = tl.dot(pixels, w, tokens, input_precision=PRECISION)
    tokens += tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)[None, :]
    centred = tl.where(inside[None, :], tokens - (tl.sum(tokens, axis=1) / C)[:, None], 0.0)
    normed = centred * tl.rsqrt(tl.sum(centred * centred, axis=1) / C + eps)[:, None]
    normed = normed * tl.load(scale + c, mask=inside, other=0.0).to(tl.float32)[None, :]
    normed += tl.load(shift + c, mask=inside, other=0.0).to(tl.float32)[None, :]
    to = out + m[:, None].to(tl.int64) * C + c[None, :]
    tl.store(to, normed.to(out.dtype.element_ty), mask=(m < M)[:, None] & inside[None, :])


def patch_tokens(frames: Tensor, projection: nn.Conv3d, norm: nn.LayerNorm, side: int) -> Tensor:
    """Normed patch embeddings.

    Args:
        frames: (N, 3, H, W).
        projection: (C, 3, 1, size, size) kernel with a bias.
        norm: over C.
        side: patches in a row and in a column.

    Returns:
        (N, side * side, C) tokens, row by row.
    """
    frames, size = frames.contiguous(), projection.kernel_size[1]
    channels, depth = projection.out_channels, 3 * size * size
    rows = len(frames) * side * side
    out = frames.new_empty(len(frames), side * side, channels)
    assert projection.bias is not None
    embed_patches[(triton.cdiv(rows, 64),)](
        frames, out, projection.weight, projection.bias, norm.weight, norm.bias, norm.eps, rows, *frames.shape[2:],
        side, SIZE=size, K=depth, C=channels, CP=max(16, triton.next_power_of_2(channels)), BM=64, BK=64,
        PRECISION="tf32" if frames.dtype == torch.bfloat16 else "ieee", num_warps=8, num_stages=3)
    return out
