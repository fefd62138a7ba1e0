"""Advantages of GRPO: how much better than its group each rollout did, spread over the ids that led there.

A rollout earns one reward a frame. Each reward is centred on the mean of its group (the rollouts of one clip), then
credited to every id chosen up to that frame, discounted once for each id chosen in between: with discount 0.9 the
last id of a frame gets the whole advantage, the one before it 0.9 of it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def group_advantages(rewards: Tensor) -> Tensor:
    """Centre each reward on the mean of its group.

    Args:
        rewards: (G, B, ...) float, G rollouts of each of B clips, G >= 2.

    Returns:
        Advantages of the same shape; they sum to zero over the group.

    Raises:
        ValueError: if there is only one rollout a clip (every advantage would be 0).

    Source: GRPO, arXiv:2402.03300 sec. 4.1.1, without the division by the group's deviation, as AutoGaze publishes it.
    """
    if rewards.shape[0] < 2:
        raise ValueError(f"GRPO compares rollouts: need at least 2 per clip, got {rewards.shape[0]}")
    return rewards - rewards.mean(dim=0, keepdim=True)


def token_advantages(advantages: Tensor, chosen: Tensor, discount: float) -> Tensor:
    """Credit every frame's advantage to the ids chosen up to that frame.

    Args:
        advantages: (N, T) float, one a frame; 0 where a frame earns nothing.
        chosen: (N, T, K) bool.
        discount: factor per id chosen between an id and the end of the frame that earns, in (0, 1].

    Returns:
        (N, T, K) float: sum over frames f >= t of advantages[f] * discount ** (ids after this one, up to frame f);
        0 where not chosen.
    """
    if not 0 < discount <= 1:
        raise ValueError(f"discount must be in (0, 1], got {discount}")
    counts = chosen.sum(-1)
    ends = counts.cumsum(1)  # ids up to the end of each frame
    frames = torch.arange(ends.shape[1], device=ends.device)
    between = (ends[:, None, :] - ends[:, :, None]).clamp(min=0)  # (N, from, to)
    later = frames[None, :] >= frames[:, None]
    at_frame_end = (_power(discount, between, advantages.dtype) * later * advantages[:, None, :]).sum(-1)
    left_in_frame = (counts[..., None] - chosen.cumsum(-1)).clamp(min=0)
    return _power(discount, left_in_frame, advantages.dtype) * at_frame_end[..., None] * chosen


def _power(base: float, exponent: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.pow(torch.tensor(base, dtype=dtype, device=exponent.device), exponent.to(dtype))
