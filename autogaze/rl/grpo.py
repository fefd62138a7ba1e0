"""The GRPO loss on given log-probabilities and advantages, and the distance to a reference policy.

Differences to the paper (arXiv:2402.03300): no division by the group's deviation and none by the rollout's length
(both bias the gradient; AutoGaze publishes it so); clipping and the KL term are options that are off at None and 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PolicyLoss:
    """The loss of each rollout, and how far the policy has moved since it sampled them."""

    loss: Tensor  # (N,) float
    clipped: Tensor  # () float, share of chosen ids whose ratio the clip held back
    ratio: Tensor  # () float, mean probability ratio of chosen ids


def policy_loss(
    log_action_probs: Tensor,
    advantages: Tensor,
    chosen: Tensor,
    sampled: Tensor | None = None,
    clip: float | None = None,
) -> PolicyLoss:
    """Policy-gradient loss: minus the sum over ids of probability ratio x advantage.

    Args:
        log_action_probs: (N, ...) float, under the policy that is trained.
        advantages: float of the same shape.
        chosen: bool of the same shape.
        sampled: log-probabilities of the same ids when they were sampled; None: the policy has not moved since
            (ratio 1, gradient of the log-probability).
        clip: PPO's epsilon: a ratio outside 1 +- clip earns nothing more; None does not clip.
    """
    sampled = log_action_probs.detach() if sampled is None else sampled
    ratio = (log_action_probs - sampled).masked_fill(~chosen, 0.0).exp()
    gain = ratio * advantages
    held = torch.zeros_like(chosen)
    if clip is not None:
        bounded = ratio.clamp(1 - clip, 1 + clip) * advantages
        held = (bounded < gain) & chosen
        gain = torch.minimum(gain, bounded)
    count = chosen.sum().clamp(min=1)
    loss = -gain.masked_fill(~chosen, 0.0).flatten(1).sum(1)
    return PolicyLoss(loss, held.sum() / count, (ratio.detach() * chosen).sum() / count)


def kl_divergence(log_action_probs: Tensor, reference: Tensor, chosen: Tensor) -> Tensor:
    """Estimate of KL(policy || reference) on sampled ids, never negative.

    Args:
        log_action_probs, reference: (N, ...) float, log-probabilities of the same ids under policy and reference.
        chosen: bool of the same shape.

    Returns:
        (N,) float nats, summed over a rollout's ids.

    Source: the "k3" estimator, GRPO arXiv:2402.03300 eq. 4.
    """
    gap = (reference - log_action_probs).masked_fill(~chosen, 0.0)
    return (gap.exp() - gap - 1).flatten(1).sum(1)
