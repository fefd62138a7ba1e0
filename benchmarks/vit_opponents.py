"""Opponents of a gazed ViT: the dense ViT, and the published way of encoding a gaze.

Both run timm's own modules, compiled block by block and captured in a CUDA graph like ours. The dense model gets its
best batch. The published way embeds every patch of every scale, keeps one padded slot for each choice, and attends
under a dense mask; its own decode times are those measured on an H200 with the published implementation (bf16,
16 frames at 224, ratio 0.1; README says how).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autogaze.core.gaze import Gaze
from autogaze.vit.towers.positions import resize_table, square

# clips in the batch -> ms a clip, the faster of float32 and bf16
PUBLISHED_DECODE_MS = {1: 281.0, 8: 39.2, 64: 5.84, 256: 2.80}
PUBLISHED_RATIO, IDS, IDS_A_STEP = 0.1, 265, 10


def dense_frames(model: nn.Module, video: Tensor, chunk: int) -> Callable[[], list[Tensor]]:
    """The dense ViT over every frame, `chunk` frames at a time."""
    frames = video.flatten(0, 1)

    def run() -> list[Tensor]:
        return [model.forward_features(part) for part in frames.split(chunk)]

    return run


def dense_joint(model: nn.Module, video: Tensor) -> Callable[[], Tensor]:
    """The dense ViT with all frames of a clip in one sequence."""

    def run() -> Tensor:
        tokens = model._pos_embed(model.patch_embed(video.flatten(0, 1)))
        return model.norm(model.blocks(tokens.unflatten(0, video.shape[:2]).flatten(1, 2)))

    return run


def published(model: nn.Module, video: Tensor, gaze: Gaze, attention: str) -> Callable[[], Tensor]:
    """The published way: whole pyramid embedded, padded slots gathered, dense mask."""
    mask = _dense_mask(gaze, attention)
    slots = gaze.ids.flatten(1)  # (B, T * K)
    frame = torch.arange(gaze.ids.shape[1], device=slots.device).repeat_interleave(gaze.ids.shape[2])

    def run() -> Tensor:
        embedded = torch.cat([_embed_scale(model, video.flatten(0, 1), side) for side in gaze.grid.sides], dim=1)
        embedded = embedded.unflatten(0, video.shape[:2])
        tokens = embedded[torch.arange(len(slots), device=slots.device)[:, None], frame, slots]
        for block in model.blocks:
            tokens = block(tokens, attn_mask=mask)
        return model.norm(tokens)

    return run


def published_decode_ms(clips: int, ratio: float) -> float:
    """Decode time of the published implementation for a batch of 16-frame clips; more than 256 in batches of 256.

    Ratios other than 0.1 are scaled by decoder steps: one prefill and one step for 10 ids.
    """
    sizes = sorted(PUBLISHED_DECODE_MS)
    if clips >= sizes[-1]:
        each = PUBLISHED_DECODE_MS[sizes[-1]]
    else:
        right = next(size for size in sizes if size > clips)
        left = sizes[sizes.index(right) - 1]
        share = math.log(clips / left) / math.log(right / left)
        each = PUBLISHED_DECODE_MS[left] ** (1 - share) * PUBLISHED_DECODE_MS[right] ** share
    return clips * each * _steps(ratio) / _steps(PUBLISHED_RATIO)


def _steps(ratio: float) -> int:
    return 1 + math.ceil(max(1, int(ratio * IDS)) / IDS_A_STEP)


def _embed_scale(model: nn.Module, frames: Tensor, side: tuple[int, int]) -> Tensor:
    patch = model.patch_embed.patch_size[0]
    size = (side[0] * patch, side[1] * patch)
    resized = F.interpolate(frames, size, mode="bicubic") if size != tuple(frames.shape[-2:]) else frames
    tokens = model.patch_embed.proj(resized).flatten(2).transpose(1, 2)
    return tokens + resize_table(square(model.pos_embed[0]), *side, antialias=True)


def _dense_mask(gaze: Gaze, attention: str) -> Tensor:
    """(B, 1, T * K, T * K) bool; padding is never a key, but a slot always sees itself."""
    _, frames, slots = gaze.ids.shape
    frame = torch.arange(frames, device=gaze.device).repeat_interleave(slots)
    if attention == "frame":
        seen = frame[:, None] == frame
    else:
        seen = frame[:, None] >= frame if attention == "block_causal" else torch.ones_like(frame[:, None] == frame)
    mask = seen & gaze.chosen.flatten(1)[:, None, None]
    return mask | torch.eye(frames * slots, dtype=torch.bool, device=gaze.device)
