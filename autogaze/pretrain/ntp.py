"""The losses of next-token prediction: imitate recorded gazes, and learn to tell the loss that remains.

Everything is a sum over a row's slots, divided by the mean count of slots a row of the batch: a clip with twice the
gazes weighs twice as much, and the scale of the loss does not depend on how many a batch happens to hold.
Source: AutoGaze, arXiv:2603.12254 sec. 3.3; normalisation as in the published implementation.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEAST_LOSS = 0.01  # a smaller reconstruction loss counts as this much where errors are shares of it


def per_mean_count(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of masked values in each row, over the mean mask count of the rows.

    Args:
        values: (N, ...) float; what stands outside the mask is ignored, NaN too.
        mask: bool or 0/1 of the same shape.

    Returns:
        (N,) float; zeros when the mask is empty.
    """
    if values.shape != mask.shape:
        raise ValueError(f"values and mask must have one shape, got {tuple(values.shape)} and {tuple(mask.shape)}")
    mask = mask.bool().flatten(1)
    total = values.flatten(1).masked_fill(~mask, 0.0).sum(1)
    return total / mask.sum(1).to(total.dtype).mean().clamp(min=torch.finfo(total.dtype).tiny)


def ntp_loss(log_action_probs: Tensor, chosen: Tensor) -> Tensor:
    """Negative log-likelihood of the recorded ids, one number a row.

    Args:
        log_action_probs: (N, ...) float, nats; see `AutoGaze.score`.
        chosen: bool of the same shape; False marks padding.

    Returns:
        (N,) float: minus the sum over chosen slots, over the mean count of chosen slots a row.
    """
    return per_mean_count(-log_action_probs, chosen)


def task_loss_prediction_loss(prediction: Tensor, task_loss: Tensor, known: Tensor, relative: bool = False) -> Tensor:
    """Squared error of the predicted reconstruction loss where the true one is known.

    Args:
        prediction: (N, ...) float, predicted loss after each id.
        task_loss: float of the same shape, the true loss; NaN is allowed where it is not known.
        known: bool of the same shape; chosen slots whose true loss is known (padding never counts).
        relative: count errors as shares of the true loss, as the stop rule's promise does; published: False.

    Returns:
        (N,) float: sum over known slots, over the mean count of known slots a row.
    """
    gap = (prediction - task_loss).masked_fill(~known.bool(), 0.0)  # before the square: NaN x 0 is NaN in its gradient
    if relative:
        gap = gap / task_loss.masked_fill(~known.bool(), 1.0).clamp(min=LEAST_LOSS)
    return per_mean_count(gap.square(), known)
