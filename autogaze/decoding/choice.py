"""Choosing one group of ids from the heads of one position: arg-max or sample, no repeats, the stop rule.

Source: AutoGaze, arXiv:2603.12254 sec. 3.2 (multi-token prediction, self-decided stop).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from autogaze.network.residual import FrameResidual

Slots = tuple[Tensor, Tensor, Tensor]  # ids int64, chosen bool, predicted loss float32: slots last


def choose_group(
    logits: Tensor,
    task_loss: Tensor,
    taken: Tensor,
    temperature: float | None = None,
    generator: torch.Generator | None = None,
    error: FrameResidual | None = None,
) -> tuple[Tensor, Tensor]:
    """Take one id a head, head by head; no id twice in a frame, never `eos` (the last entry of the vocabulary).

    Args:
        logits: (B, K, vocabulary) float.
        task_loss: (B, K) float, what the heads predict.
        taken: (B, vocabulary - 1) bool, ids that the frame has already; updated in place.
        temperature: None takes the best id; a number samples from softmax(logits / temperature).
        generator: for sampling.
        error: of the frame; its scores are added to the logits of every head. Updated in place.

    Returns:
        (B, K) int64 ids, meaningless once every id is taken; and (B, K) float losses predicted before each of them, by
        `error` if there is one.
    """
    logits = logits[..., :-1]
    if temperature is not None:
        # Gumbel noise: the arg-max of noisy logits is a sample, also when a mask is applied afterwards.
        noise = torch.empty_like(logits).exponential_(generator=generator).clamp_min_(1e-20)
        logits = logits / temperature - noise.log()
    ids, losses = [], []
    for scores in logits.unbind(1):
        if error is not None:
            losses.append(error.predicted_loss())
            scores = scores + error.scores() / (1.0 if temperature is None else temperature)
        choice = scores.masked_fill(taken, -torch.inf).argmax(-1, keepdim=True)
        taken.scatter_(1, choice, True)
        ids.append(choice)
        if error is not None:
            error.take(choice[:, 0])
    return torch.cat(ids, dim=1), torch.stack(losses, dim=1) if losses else task_loss


def keep_group(task_loss: Tensor, room: Tensor, requirement: Tensor | None, first: bool) -> tuple[Tensor, Tensor]:
    """Masks of the ids of a group that are real choices, and of the clips that are done with their frame after it.

    Head i predicts the loss before the group's i-th id is taken, so an id whose prediction already meets the
    requirement is not needed: it becomes padding, the others of the group stay, and the frame ends there.

    Args:
        task_loss: (B, K) float predicted losses.
        room: (B,) int64, ids that the frame may still spend, before this group.
        requirement: (B,) float, or None.
        first: the group opens the frame; its first id is never padding.

    Returns:
        (B, K) bool kept, (B,) bool done.
    """
    slots = torch.arange(task_loss.shape[1], device=task_loss.device)
    within = slots < room[:, None]
    done = room <= task_loss.shape[1]
    if requirement is None:
        return within, done
    met = task_loss <= requirement[:, None]
    if first:
        met = met & (slots > 0)
    return within & ~met, done | (met & within).any(-1)


def join_slots(parts: Sequence[Slots], join: Callable[[list[Tensor]], Tensor]) -> Slots:
    """Join slots of frames or clips that have different numbers of them.

    Slots that were not decoded have id 0, are not chosen and have loss NaN.
    """
    width = max(ids.shape[-1] for ids, _, _ in parts)
    fills = (0, False, torch.nan)
    ids, chosen, loss = (
        join([F.pad(part, (0, width - part.shape[-1]), value=fill) for part in same])
        for same, fill in zip(zip(*parts, strict=True), fills, strict=True)
    )
    return ids, chosen, loss
