"""Checks at the door: what a caller hands in is refused with a reason, or taken."""

from __future__ import annotations

from torch import Tensor


def check_video(video: Tensor) -> None:
    """Refuse what is not a preprocessed clip."""
    if not isinstance(video, Tensor) or video.ndim != 5 or video.shape[2] != 3 or not video.is_floating_point():
        got = f"{video.dtype} {tuple(video.shape)}" if isinstance(video, Tensor) else type(video).__name__
        raise ValueError(f"video must be (B, T, 3, H, W) float, got {got}; see autogaze.media.preprocess")
    if 0 in video.shape:
        raise ValueError(f"video must not be empty, got {tuple(video.shape)}")
