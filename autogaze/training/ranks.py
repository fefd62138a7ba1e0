"""Training on several devices: every process holds the whole model, gradients are averaged once before each step.

This does without torch's DistributedDataParallel. Its reducer fires during every backward pass, wants each parameter
to get a gradient exactly once a step, and so fights with a step made of several backward passes (GRPO's parts) and
with heads that a batch does not train. The models here have a few million parameters: one all-reduce of all
gradients (13 MB at the published size) takes far less than a step, so nothing is won by overlapping it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, distributed, nn

PATIENCE = timedelta(minutes=10)  # a process that waits longer for the others ends the run


class Ranks(DDPStrategy):
    """The strategy of one of several processes; Lightning's cluster environment says which one it is."""

    def __init__(self) -> None:
        super().__init__(timeout=PATIENCE)

    def configure_ddp(self) -> None:
        """Start from the weights of rank 0; a second group on the CPU shares decisions without waiting for a GPU."""
        assert isinstance(self.model, nn.Module)
        for parameter in self.model.parameters():
            distributed.broadcast(parameter.detach(), 0)
        self._control = distributed.new_group(backend="gloo", timeout=PATIENCE)

    def optimizer_step(self, optimizer: Any, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        """Average after the backward passes and before Lightning clips; manual modules do both by themselves."""
        module = self.lightning_module
        assert module is not None

        def averaged() -> Any:
            result = closure()
            if module.automatic_optimization:
                average_gradients(module.parameters())
            return result

        return super().optimizer_step(optimizer, averaged, model, **kwargs)

    def share(self, value: float, largest: bool = False) -> float:
        """Rank 0's value on every rank, or the largest of all."""
        held = torch.tensor([value], dtype=torch.float64)
        if largest:
            distributed.all_reduce(held, distributed.ReduceOp.MAX, group=self._control)
        else:
            distributed.broadcast(held, 0, group=self._control)
        return float(held)


def share(trainer: pl.Trainer, value: float, largest: bool = False) -> float:
    """Rank 0's value on every rank, or the largest of all ranks; every rank must call it at the same step."""
    return trainer.strategy.share(value, largest) if isinstance(trainer.strategy, Ranks) else value


@torch.no_grad()
def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace gradients by their mean over all ranks; nothing happens where there is one rank.

    Args:
        parameters: the same on every rank. One without a gradient counts as zero, whether or not others have one.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    flat = torch.cat([(torch.zeros_like(one) if one.grad is None else one.grad).flatten() for one in trained])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for parameter, part in zip(trained, flat.split([one.numel() for one in trained]), strict=True):
        parameter.grad = part.view_as(parameter)
