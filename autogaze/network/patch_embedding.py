"""The encoder's first layer on a GPU: patches, their projection and its norm, read from the frames in place; and, as
it has every pixel at hand, the frames without colours."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor, nn


@triton.jit(do_not_specialize=["M", "T"])
def embed_patches(
    video,
    out,
    grey,
    weight,
    bias,
    scale,
    shift,
    eps,
    M,
    T,
    H,
    W,
    CLIP,
    FRAME,
    GREY_CLIP,
    SIDE,
    SIZE: tl.constexpr,
    C: tl.constexpr,
    CA: tl.constexpr,
    CB: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    GREY: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """BM patches of frames (B, T, 3, H, W), row by row, to tokens (M, C), held as two tiles of CA and CB columns; with
    GREY also the mean of their colours, to frames (B, T, H, W). CLIP, FRAME and GREY_CLIP: strides."""
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    patch = m % (SIDE * SIDE)
    frame = m // (SIDE * SIDE)
    clip, t = (frame // T).to(tl.int64), (frame % T).to(tl.int64)
    corner = (patch // SIDE) * SIZE * W + patch % SIDE * SIZE
    start, grey_start = clip * CLIP + t * FRAME + corner, clip * GREY_CLIP + t * H * W + corner
    ca, cb = tl.arange(0, CA), CA + tl.arange(0, CB)
    in_a, in_b = (ca < C)[None, :], (cb < C)[None, :]
    tokens_a, tokens_b = tl.zeros((BM, CA), tl.float32), tl.zeros((BM, CB), tl.float32)
    AREA: tl.constexpr = SIZE * SIZE
    # Unrolled: where pixels of a loop are multiplied and added up too, Triton 3.6 reads some of them too late.
    for first in tl.static_range(0, AREA, BK):
        k = first + tl.arange(0, BK)
        pixel, held = k // SIZE * W + k % SIZE, (m < M)[:, None] & (k < AREA)[None, :]
        total = tl.zeros((BM, BK), tl.float32)
        for colour in tl.static_range(3):
            pixels = tl.load(video + start[:, None] + (colour * H * W + pixel)[None, :], mask=held, other=0.0)
            row = (colour * AREA + k)[:, None]
            wa = tl.load(weight + ca[None, :] * 3 * AREA + row, mask=in_a & (k < AREA)[:, None], other=0.0)
            wb = tl.load(weight + cb[None, :] * 3 * AREA + row, mask=in_b & (k < AREA)[:, None], other=0.0)
            tokens_a = tl.dot(pixels, wa, tokens_a, input_precision=PRECISION)
            tokens_b = tl.dot(pixels, wb, tokens_b, input_precision=PRECISION)
            if GREY:
                total += pixels.to(tl.float32)
        if GREY:
            tl.store(grey + grey_start[:, None] + pixel[None, :], (total / 3).to(grey.dtype.element_ty), mask=held)
    tokens_a += tl.load(bias + ca, mask=ca < C, other=0.0).to(tl.float32)[None, :]
    tokens_b += tl.load(bias + cb, mask=cb < C, other=0.0).to(tl.float32)[None, :]
    mean = (tl.sum(tokens_a, axis=1) + tl.sum(tokens_b, axis=1)) / C
    tokens_a, tokens_b = tl.where(in_a, tokens_a - mean[:, None], 0.0), tl.where(in_b, tokens_b - mean[:, None], 0.0)
    squares = tl.sum(tokens_a * tokens_a, axis=1) + tl.sum(tokens_b * tokens_b, axis=1)
    size = tl.rsqrt(squares / C + eps)[:, None]
    at = m[:, None].to(tl.int64) * C
    store_scaled(out + at, tokens_a * size, scale, shift, ca, m < M, C)
    store_scaled(out + at, tokens_b * size, scale, shift, cb, m < M, C)


@triton.jit
def store_scaled(rows, normed, scale, shift, columns, valid, C: tl.constexpr):
    """Columns of normed tokens to their rows (M, 1), each with its scale and shift."""
    inside = columns < C
    normed = normed * tl.load(scale + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
    normed += tl.load(shift + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
    tl.store(rows + columns[None, :], normed.to(rows.dtype.element_ty), mask=valid[:, None] & inside[None, :])


def patch_tokens(video: Tensor, projection: nn.Conv3d, norm: nn.LayerNorm, side: int, grey: Tensor | None) -> Tensor:
    """Normed patch embeddings, and frames without colours.

    Args:
        video: (B, T, 3, H, W); a stretch of frames of longer clips is read where it is.
        projection: (C, 3, 1, size, size) kernel with a bias.
        norm: over C.
        side: patches in a row and in a column.
        grey: (B, T, 1, H, W), where the means of the colours go, the frames of a clip one after the other; then the
            patches must cover the frames.

    Returns:
        (B, T, side * side, C) tokens, row by row.
    """
    batch, frames, _, height, width = video.shape
    if video.stride()[2:] != (height * width, width, 1):
        video = video.contiguous()
    size, channels = projection.kernel_size[1], projection.out_channels
    rows, whole = batch * frames * side * side, max(16, 1 << (channels.bit_length() - 1))
    out = video.new_empty(batch, frames, side * side, channels)
    assert projection.bias is not None
    embed_patches[(triton.cdiv(rows, 64),)](
        video,
        out,
        out if grey is None else grey,
        projection.weight,
        projection.bias,
        norm.weight,
        norm.bias,
        norm.eps,
        rows,
        frames,
        height,
        width,
        video.stride(0),
        video.stride(1),
        0 if grey is None else grey.stride(0),
        side,
        SIZE=size,
        C=channels,
        CA=whole,
        CB=max(16, triton.next_power_of_2(channels - whole)),
        BM=64,
        BK=64,
        GREY=grey is not None,
        PRECISION="tf32" if video.dtype == torch.bfloat16 else "ieee",
        num_warps=4,
    )
    return out
