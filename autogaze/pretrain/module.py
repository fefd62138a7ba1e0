"""Training modules of the gaze model: what both stages share, and next-token prediction."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from autogaze.model import AutoGaze
from autogaze.pretrain.judge import AnyJudge
from autogaze.pretrain.ntp import LEAST_LOSS, ntp_loss, task_loss_prediction_loss
from autogaze.training.callbacks import RATE
from autogaze.training.data.clip import Clip
from autogaze.training.recipes import PretrainRecipe, TrainerRecipe

GATE = "residual_map.gate."  # begins the names of its parameters
VALIDATION_RATIO = 0.1  # budget at which validation compares models


class GazeModule(pl.LightningModule):
    """A gaze model in training: optimiser, and validation by reconstruction loss at a fixed ratio.

    Args:
        model: trained in place.
        judge: tells the reconstruction loss in validation (and the reward in RL).
        recipe: the stage's knobs.
    """

    run_progress = 0.0  # share of the run that is over, kept by the Pace callback

    def __init__(self, model: AutoGaze, judge: AnyJudge, recipe: TrainerRecipe) -> None:
        super().__init__()
        self.model, self.judge, self.recipe = model, judge, recipe

    def on_fit_start(self) -> None:
        self.judge.to(self.device)

    def on_validation_start(self) -> None:
        self.judge.to(self.device)

    def validation_step(self, batch: Clip, batch_idx: int) -> None:
        gaze = self.model.generate(batch.video, gazing_ratio=VALIDATION_RATIO)
        loss = self.judge.losses(batch.video, gaze)
        last = last_chosen(gaze.chosen)
        predicted = self.model.score(batch.video, gaze, as_decoded=True).task_loss_prediction[last]
        truth = loss[last.any(-1)]
        error = (predicted - truth).abs()
        self.log("val/reconstruction_loss", loss.mean(), batch_size=len(loss), sync_dist=True, prog_bar=True)
        self.log_dict(
            {
                "val/task_loss_error": error.mean(),
                "val/task_loss_relative_error": (error / truth.clamp(min=LEAST_LOSS)).mean(),
            },
            batch_size=len(loss),
            sync_dist=True,
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        named = dict(self.model.named_parameters())
        gate = [named.pop(name) for name in list(named) if name.startswith(GATE)]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in named.values() if p.ndim >= 2], "weight_decay": self.recipe.weight_decay},
            {"params": [p for p in named.values() if p.ndim < 2], "weight_decay": 0.0},
        ]
        if gate:
            rate = self.recipe.gate_rate if isinstance(self.recipe, PretrainRecipe) else 1.0
            groups.append({"params": gate, "weight_decay": 0.0, RATE: rate})
        return torch.optim.AdamW(groups, lr=self.recipe.learning_rate, betas=(0.9, 0.95))


class PretrainModule(GazeModule):
    """Teach a model to imitate recorded gazes, and to tell the loss that each of their steps left."""

    recipe: PretrainRecipe

    def training_step(self, batch: Clip, batch_idx: int) -> Tensor:
        assert batch.gaze is not None and batch.task_loss is not None
        scores = self.model.score(batch.video, batch.gaze, as_decoded=True)  # train on what `generate` does
        ids = ntp_loss(scores.log_action_probs, batch.gaze.chosen).mean()
        known = batch.gaze.chosen & batch.task_loss.isfinite()
        task = task_loss_prediction_loss(
            scores.task_loss_prediction, batch.task_loss, known, self.recipe.relative_task_loss
        ).mean()
        size = len(batch.video)
        self.log("train/ntp_loss", ids, batch_size=size, prog_bar=True)
        self.log("train/task_loss_prediction_loss", task, batch_size=size)
        return ids + self.recipe.task_loss_weight * task


def last_chosen(chosen: Tensor) -> Tensor:
    """(..., K) bool: the last chosen slot of each frame."""
    after = chosen.flip(-1).cumsum(-1).flip(-1)
    return chosen & (after == 1)
