"""Picture quality: PSNR and SSIM of frames against the truth."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

WINDOW, SIGMA = 11, 1.5  # pixels: the Gaussian window of the SSIM paper
HIGHEST_PSNR = 100.0  # decibels, what an exact copy counts as


def psnr(frames: Tensor, truth: Tensor, peak: float = 2.0) -> Tensor:
    """Peak signal-to-noise ratio of each clip, from its mean squared error.

    Args:
        frames, truth: (B, T, 3, H, W) float.
        peak: width of the pixels' range; 2 for [-1, 1].

    Returns:
        (B,) decibels, at most 100.
    """
    error = (frames.float() - truth.float()).square().mean((1, 2, 3, 4))
    return (10 * torch.log10(peak**2 / error.clamp(min=1e-30))).clamp(max=HIGHEST_PSNR)


def ssim(frames: Tensor, truth: Tensor, peak: float = 2.0) -> Tensor:
    """Structural similarity of each clip, mean over its frames and colours.

    Args:
        frames, truth: (B, T, 3, H, W) float, H and W at least 11.
        peak: width of the pixels' range; 2 for [-1, 1].

    Returns:
        (B,) in [-1, 1], 1 for equal frames.

    Source: Wang et al., "Image Quality Assessment", IEEE TIP 2004: 11 x 11 Gaussian window of deviation 1.5,
    K1 = 0.01, K2 = 0.03, places where the window fits.
    """
    if min(frames.shape[-2:]) < WINDOW:
        raise ValueError(f"SSIM needs frames of at least {WINDOW} px, got {tuple(frames.shape[-2:])}")
    x, y = (video.float().flatten(0, 2)[:, None] for video in (frames, truth))
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x, variance_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    similarity = (
        (2 * mean_x * mean_y + c1)
        * (2 * covariance + c2)
        / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))
    )
    return similarity.mean((1, 2, 3)).unflatten(0, frames.shape[:3]).mean((1, 2))


def _blur(images: Tensor) -> Tensor:
    """Gaussian means over every place where the window fits, as two products with a banded matrix."""
    rows, columns = (_band(length).to(images) for length in images.shape[-2:])
    return rows @ images @ columns.mT


@lru_cache(maxsize=8)
def _band(length: int) -> Tensor:
    """(length - WINDOW + 1, length): row i holds the window at places i to i + WINDOW - 1."""
    offsets = torch.arange(length) - torch.arange(length - WINDOW + 1)[:, None]
    weights = torch.exp(-0.5 * ((offsets - WINDOW // 2) / SIGMA).square()) * ((offsets >= 0) & (offsets < WINDOW))
    return weights / weights.sum(1, keepdim=True)
