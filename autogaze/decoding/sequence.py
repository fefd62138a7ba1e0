"""The order of a clip's tokens: what is fed when, at which rotary position, and what each id is predicted from.

The sequence of a clip is [visual tokens][ids] frame after frame, without padding. Ids come in groups of K, one from
each head: the first group of a frame is predicted from the state of its last visual token, every later one from the
state of the last id of the group before. The decoder sees the last `window` frames; published models stop there.

A frame's last group predicts nothing in its frame and is fed with the next frame, ahead of its visual tokens. Of a
group in which the frame stopped, the ids that the stop rule left out are never fed.

Rotary positions count the tokens of the sequence, with one exception that published models were trained with: a group
that is fed while its frame is being decoded, every group but the last, takes the positions of the frame's last K
visual tokens. The last group is counted like any other token.
"""

from __future__ import annotations

import torch
from torch import Tensor


def position_in_frame(last_visual: Tensor | int, slot: Tensor, group: int) -> Tensor:
    """Rotary positions of ids that are fed while their frame is being decoded.

    Args:
        last_visual: position of the frame's last visual token.
        slot: of each id in its frame, from 0 on.
        group: ids a group (K).
    """
    return last_visual + 1 - group + slot % group


def positions_of_ids(chosen: Tensor, visual_at: Tensor, gaze_at: Tensor, group: int) -> Tensor:
    """Rotary positions (B, T, K) that the ids of whole gazes have while they are decoded.

    Args:
        chosen: (B, T, K) bool.
        visual_at: (B, T) where in the sequence each frame's last visual token stands.
        gaze_at: (B, T, K) where each id stands.
        group: ids a group.
    """
    slot = torch.arange(chosen.shape[-1], device=chosen.device)
    last_group = (slot * chosen).amax(-1, keepdim=True) // group if len(slot) else slot
    return torch.where(slot // group < last_group, position_in_frame(visual_at[..., None], slot, group), gaze_at)


def predicted_from(visual_at: Tensor, gaze_at: Tensor, group: int) -> Tensor:
    """Places in the sequence that each id (B, T, K) is predicted from; arguments as above."""
    before = (torch.arange(gaze_at.shape[-1], device=gaze_at.device) // group) * group - 1
    return torch.where(before >= 0, gaze_at[..., before.clamp(min=0)], visual_at[..., None])
