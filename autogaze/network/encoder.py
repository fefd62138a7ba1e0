"""The frame encoder: a small convolutional network that is causal in time.

A frame becomes 14 x 14 visual tokens that know the frame and the two before it (three per block). Its memory of
those frames is an explicit argument and result, so a stream and a whole clip give the same tokens.
Source: AutoGaze, arXiv:2603.12254 sec. 3; layer order as in the published checkpoints.
"""

from __future__ import annotations

import contextlib
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EncoderCache = tuple[Tensor, ...]  # one (B, C, kernel - 1, side, side) tensor a block: its last inputs


class FrameTokens(NamedTuple):
    """The encoder's output for some frames, before anything is chosen in them."""

    visual: Tensor  # (B, T, N, width) visual tokens, row by row
    grey: Tensor | None  # (B, T, 1, S, S) the frames as they were encoded, without colours; None: nobody asked

    def frame(self, t: int) -> FrameTokens:
        """Of one frame: (B, N, width) and (B, 1, H, W)."""
        return FrameTokens(self.visual[:, t], None if self.grey is None else self.grey[:, t])


class CausalConv3d(nn.Module):
    """3-D convolution that sees this frame and the kernel - 1 frames before it."""

    def __init__(self, channels: int, temporal_kernel: int, spatial_kernel: int) -> None:
        super().__init__()
        kernel = (temporal_kernel, spatial_kernel, spatial_kernel)
        self.conv3d = nn.Conv3d(channels, channels, kernel, padding=(0, spatial_kernel // 2, spatial_kernel // 2))

    def forward(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat([past, x], dim=2)
        return F.relu(self.conv3d(x)), x[:, :, x.shape[2] - past.shape[2] :]


class FrameEncoder(nn.Module):
    """Frames to visual tokens.

    Args:
        image_size: side in pixels that frames are resized to.
        patch_size: side in pixels of the patches behind the visual tokens.
        channels: width of the trunk.
        out_channels: width of the visual tokens.
        depth: causal blocks in the trunk.
        temporal_kernel, spatial_kernel: kernel of every block.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        channels: int,
        out_channels: int,
        depth: int = 1,
        temporal_kernel: int = 3,
        spatial_kernel: int = 3,
    ) -> None:
        super().__init__()
        self.image_size, self.side = image_size, image_size // patch_size
        self.past_frames = temporal_kernel - 1
        patch = (1, patch_size, patch_size)
        self.temporal_conv = nn.Conv3d(3, channels, patch, stride=patch)
        self.norm = nn.LayerNorm(channels)
        self.blocks = nn.ModuleList(CausalConv3d(channels, temporal_kernel, spatial_kernel) for _ in range(depth))
        self.out_proj = nn.Conv3d(channels, out_channels, 1)

    def empty_cache(self, batch: int) -> EncoderCache:
        """The memory of a clip that has not begun: zeros."""
        weight = self.out_proj.weight
        # The tokens come channels last; with a memory of another layout a GPU would copy all of it around every block.
        form = torch.channels_last_3d if weight.is_cuda else torch.contiguous_format
        shape = (batch, weight.shape[1], self.past_frames, self.side, self.side)
        return tuple(
            torch.zeros(shape, dtype=weight.dtype, device=weight.device).to(memory_format=form) for _ in self.blocks
        )

    def forward(
        self, video: Tensor, cache: EncoderCache | None = None, grey: Tensor | None = None
    ) -> tuple[Tensor, EncoderCache]:
        """Encode frames that follow those in the cache.

        Args:
            video: (B, T, 3, H, W) float, preprocessed; resized (bicubic) unless image_size square.
            cache: what an earlier call returned; None at the start of a clip.
            grey: (B, T, 1, image_size, image_size), where the frames without colours are put: the first layer reads
                every pixel anyway.

        Returns:
            (B, T, side * side, out_channels) visual tokens row by row, and the new cache.
        """
        cache = self.empty_cache(len(video)) if cache is None else cache
        x = self._patch_tokens(self._fit(video), grey)
        x = x.unflatten(2, (self.side, self.side))
        x = x.permute(0, 4, 1, 2, 3)
        new_cache = []
        for block, past in zip(self.blocks, cache, strict=True):
            x, past = block(x, past)
            new_cache.append(past)
        tokens = x.permute(0, 2, 3, 4, 1).flatten(2, 3)
        visual = F.linear(tokens, self.out_proj.weight.flatten(1), self.out_proj.bias)
        return visual, tuple(new_cache)

    def _fit(self, video: Tensor) -> Tensor:
        """Frames (B, T, 3, H, W) in the encoder's dtype and size."""
        video = video.to(self.out_proj.weight.dtype)
        if video.shape[-2:] == (self.image_size, self.image_size):
            return video
        return resize(video.flatten(0, 1), self.image_size).unflatten(0, video.shape[:2])

    def _patch_tokens(self, video: Tensor, grey: Tensor | None) -> Tensor:
        """(B, T, side * side, C) normed patch embeddings of frames (B, T, 3, H, W); the mean of their colours goes into
        `grey`."""
        if video.is_cuda and video.dtype == torch.bfloat16 and not torch.is_grad_enabled():
            with contextlib.suppress(ImportError):  # Triton comes with CUDA builds of PyTorch, not with all others
                from autogaze.network.patch_embedding import patch_tokens

                return patch_tokens(video, self.temporal_conv, self.norm, self.side, grey)
        if grey is not None:
            grey.copy_(video.mean(-3, keepdim=True))
        return self.norm(self._patchify(video))

    def _patchify(self, video: Tensor) -> Tensor:
        """The patch convolution as one matrix product, which is faster than Conv3d everywhere we run."""
        size, side = self.temporal_conv.kernel_size[1], self.side
        video = video[..., : side * size, : side * size]  # like a convolution, ignore a cut-off edge
        patches = video.unflatten(-1, (side, size)).unflatten(-3, (side, size))  # (B, T, 3, row, y, column, x)
        patches = patches.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(2, 3)
        return F.linear(patches, self.temporal_conv.weight.flatten(1), self.temporal_conv.bias)


def resize(frames: Tensor, side: int) -> Tensor:
    """Frames (N, C, H, W) as squares: bicubic without antialias, as `torch.nn.functional.interpolate` does it."""
    if frames.is_cuda:  # its kernel keeps few threads of a GPU busy when there are many small frames
        return resize_by_products(frames, side)
    return F.interpolate(frames, size=(side, side), mode="bicubic", align_corners=False)


def resize_by_products(frames: Tensor, side: int) -> Tensor:
    """`resize` as a product with a matrix for the columns, and one for the rows."""
    height, width = (_bicubic(length, side, frames.dtype, frames.device) for length in frames.shape[-2:])
    wide = (frames.reshape(-1, frames.shape[-1]) @ width).view(-1, frames.shape[-2], side)
    return torch.bmm(height.t().expand(len(wide), -1, -1), wide).view(*frames.shape[:2], side, side)


@lru_cache(maxsize=16)
def _bicubic(length: int, side: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(length, side): what each pixel of a line adds to those of the resized one."""
    with torch.inference_mode(False), torch.no_grad():
        lines = torch.eye(length, dtype=torch.float32, device=device)[
            None, :, None
        ]  # (1, length, 1, length): one line a channel
        return F.interpolate(lines, size=(1, side), mode="bicubic", align_corners=False)[0, :, 0].to(dtype)
