"""Luminance: the brightness that single-channel methods look at (ITU-R BT.601 weights)."""

from __future__ import annotations

from torch import Tensor


def luminance(video: Tensor) -> Tensor:
    """(B, T, 3, H, W) RGB to (B, T, H, W), in the range of the input."""
    return (video * video.new_tensor((0.299, 0.587, 0.114))[:, None, None]).sum(-3)
