"""The encoder's first layer on a GPU: patches, their projection and its norm, read from the frames in place; and, as
it has every pixel at hand, the frames without colours."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor, nn


@triton.jit
def embed_patches(video, out, grey, weight, bias, scale, shift, eps, M, T, H, W, CLIP, FRAME, SIDE, SIZE: tl.constexpr,
                  C: tl.constexpr, CP: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, GREY: tl.constexpr,
                  PRECISION: tl.constexpr):
    """BM patches of frames (B, T, 3, H, W), row by row, to tokens (M, C); with GREY also the mean of their colours, to
    frames (B * T, H, W). CLIP and FRAME: strides."""
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    patch = m % (SIDE * SIDE)
    frame = m // (SIDE * SIDE)
    corner = (patch // SIDE) * SIZE * W + patch % SIDE * SIZE
    start = (frame // T).to(tl.int64) * CLIP + (frame % T).to(tl.int64) * FRAME + corner
    grey_start = frame.to(tl.int64) * H * W + corner
    c = tl.arange(0, CP)
    inside = c < C
    tokens = tl.zeros((BM, CP), tl.float32)
    AREA: tl.constexpr = SIZE * SIZE
    total = tl.zeros((BM, BK), tl.float32)  # of the colours of BK pixels
    for i in range(0, 3 * tl.cdiv(AREA, BK)):  # all colours of some pixels, then of the next ones
        colour, k = i % 3, i // 3 * BK + tl.arange(0, BK)
        pixel, held = k // SIZE * W + k % SIZE, (m < M)[:, None] & (k < AREA)[None, :]
        pixels = tl.load(video + start[:, None] + (colour * H * W + pixel)[None, :], mask=held, other=0.0)
        w = tl.load(weight + c[None, :] * 3 * AREA + (colour * AREA + k)[:, None],
                    mask=inside[None, :] & (k < AREA)[:, None], other=0.0)
        tokens = tl.dot(pixels, w, tokens, input_precision=PRECISION)
        if GREY:
            total = tl.where(colour == 0, 0.0, total) + pixels.to(tl.float32)
            tl.store(grey + grey_start[:, None] + pixel[None, :], (total / 3).to(grey.dtype.element_ty),
                     mask=held & (colour == 2))
    tokens += tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)[None, :]
    centred = tl.where(inside[None, :], tokens - (tl.sum(tokens, axis=1) / C)[:, None], 0.0)
    normed = centred * tl.rsqrt(tl.sum(centred * centred, axis=1) / C + eps)[:, None]
    normed = normed * tl.load(scale + c, mask=inside, other=0.0).to(tl.float32)[None, :]
    normed += tl.load(shift + c, mask=inside, other=0.0).to(tl.float32)[None, :]
    at = m[:, None].to(tl.int64) * C + c[None, :]
    tl.store(out + at, normed.to(out.dtype.element_ty), mask=(m < M)[:, None] & inside[None, :])


def patch_tokens(video: Tensor, projection: nn.Conv3d, norm: nn.LayerNorm, side: int,
                 grey: bool) -> tuple[Tensor, Tensor | None]:
    """Normed patch embeddings, and frames without colours.

    Args:
        video: (B, T, 3, H, W); a stretch of frames of longer clips is read where it is.
        projection: (C, 3, 1, size, size) kernel with a bias.
        norm: over C.
        side: patches in a row and in a column.
        grey: whether the mean of the colours is wanted too; then the patches must cover the frames.

    Returns:
        (B, T, side * side, C) tokens, row by row; and (B, T, 1, H, W) means of the colours, or None.
    """
    batch, frames, _, height, width = video.shape
    if video.stride()[2:] != (height * width, width, 1):
        video = video.contiguous()
    size, channels = projection.kernel_size[1], projection.out_channels
    rows = batch * frames * side * side
    out = video.new_empty(batch, frames, side * side, channels)
    means = video.new_empty(batch, frames, 1, height, width) if grey else None
    assert projection.bias is not None
    embed_patches[(triton.cdiv(rows, 64),)](
        video, out, out if means is None else means, projection.weight, projection.bias, norm.weight, norm.bias,
        norm.eps, rows, frames, height, width, video.stride(0), video.stride(1), side, SIZE=size, C=channels,
        CP=max(16, triton.next_power_of_2(channels)), BM=64, BK=64, GREY=grey,
        PRECISION="tf32" if video.dtype == torch.bfloat16 else "ieee", num_warps=8, num_stages=3)
    return out, means
