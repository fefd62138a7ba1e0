"""The reward of a gaze: minus the reconstruction loss of each frame, minus a price for what was looked at."""

from __future__ import annotations

from torch import Tensor


def frame_rewards(loss: Tensor, counts: Tensor, patches_per_frame: int, length_price: float = 0.0) -> Tensor:
    """Reward of each frame.

    Args:
        loss: (N, T) float, reconstruction loss.
        counts: (N, T) int, patches chosen.
        patches_per_frame: what a whole frame would cost.
        length_price: reconstruction loss that looking at all patches of a frame must be worth; 0 makes looking free.

    Returns:
        (N, T) float: -loss - length_price * counts / patches_per_frame.

    Source: AutoGaze, arXiv:2603.12254 sec. 3.4 (the loss); the price is ours.
    """
    return -loss - length_price * counts / patches_per_frame
