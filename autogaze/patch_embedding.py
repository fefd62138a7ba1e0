"""The encoder's first layer on a GPU: patches, their projection and its norm, read from the frames in place."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor, nn


@triton.jit
def embed_patches(video, out, raw, weight, bias, scale, shift, eps, M, T, H, W, CLIP, FRAME, SIDE, SIZE: tl.constexpr,
                  K: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
                  RAW: tl.constexpr, PRECISION: tl.constexpr):
    """BM patches of frames (B, T, 3, H, W), row by row, to tokens (M, C); with RAW also as they were before the norm.
    CLIP and FRAME: strides."""
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    patch = m % (SIDE * SIDE)
    frame = m // (SIDE * SIDE)
    start = (frame // T).to(tl.int64) * CLIP + (frame % T).to(tl.int64) * FRAME
    start += (patch // SIDE) * SIZE * W + patch % SIDE * SIZE
    c = tl.arange(0, CP)
    inside = c < C
    tokens = tl.zeros((BM, CP), tl.float32)
    for first in range(0, K, BK):
        k = first + tl.arange(0, BK)
        pixel = k // (SIZE * SIZE) * H * W + k // SIZE % SIZE * W + k % SIZE
        pixels = tl.load(video + start[:, None] + pixel[None, :], mask=(m < M)[:, None] & (k < K)[None, :], other=0.0)
        w = tl.load(weight + c[None, :] * K + k[:, None], mask=inside[None, :] & (k < K)[:, None], other=0.0)
        tokens = tl.dot(pixels, w, tokens, input_precision=PRECISION)
    tokens += tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)[None, :]
    at, stored = m[:, None].to(tl.int64) * C + c[None, :], (m < M)[:, None] & inside[None, :]
    if RAW:
        tl.store(raw + at, tokens.to(raw.dtype.element_ty), mask=stored)
    centred = tl.where(inside[None, :], tokens - (tl.sum(tokens, axis=1) / C)[:, None], 0.0)
    normed = centred * tl.rsqrt(tl.sum(centred * centred, axis=1) / C + eps)[:, None]
    normed = normed * tl.load(scale + c, mask=inside, other=0.0).to(tl.float32)[None, :]
    normed += tl.load(shift + c, mask=inside, other=0.0).to(tl.float32)[None, :]
    tl.store(out + at, normed.to(out.dtype.element_ty), mask=stored)


def patch_tokens(video: Tensor, projection: nn.Conv3d, norm: nn.LayerNorm, side: int,
                 raw: bool) -> tuple[Tensor, Tensor | None]:
    """Normed patch embeddings.

    Args:
        video: (B, T, 3, H, W); a stretch of frames of longer clips is read where it is.
        projection: (C, 3, 1, size, size) kernel with a bias.
        norm: over C.
        side: patches in a row and in a column.
        raw: whether the embeddings before the norm are wanted too.

    Returns:
        (B, T, side * side, C) tokens, row by row; and the same before the norm, or None.
    """
    batch, frames, _, height, width = video.shape
    if video.stride()[2:] != (height * width, width, 1):
        video = video.contiguous()
    size, channels = projection.kernel_size[1], projection.out_channels
    rows = batch * frames * side * side
    out = video.new_empty(batch, frames, side * side, channels)
    before = torch.empty_like(out) if raw else None
    assert projection.bias is not None
    embed_patches[(triton.cdiv(rows, 64),)](
        video, out, out if before is None else before, projection.weight, projection.bias, norm.weight, norm.bias,
        norm.eps, rows, frames, height, width, video.stride(0), video.stride(1), side, SIZE=size, K=3 * size * size,
        C=channels, CP=max(16, triton.next_power_of_2(channels)), BM=64, BK=64, RAW=raw,
        PRECISION="tf32" if video.dtype == torch.bfloat16 else "ieee", num_warps=8, num_stages=3)
    return out, before
