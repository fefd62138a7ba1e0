"""The Lightning module that trains a reconstructor. Wiring only."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from autogaze.pretrain.reconstructor.gaze_mix import sample_masks
from autogaze.pretrain.reconstructor.network import Reconstructor
from autogaze.training.data.clip import Clip

VALIDATION_RATIOS = (0.02, 0.1, 0.5)


class ReconstructorModule(pl.LightningModule):
    """Teach a reconstructor to rebuild clips from gazes of every ratio.

    Args:
        model: trained in place.
        learning_rate: peak, reached after warm-up; a callback may set it along the run.
        weight_decay: of the matrices.
        seed: of the gazes that are drawn.
        compile: let `torch.compile` fuse the model; pays off on a GPU after about a minute.
    """

    run_progress = 0.0  # share of the run that is over, kept by the Pace callback

    def __init__(
        self,
        model: Reconstructor,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.05,
        seed: int = 0,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.seed = model, seed
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self._rebuild = torch.compile(model.reconstruct) if compile else model.reconstruct

    def training_step(self, batch: Clip, batch_idx: int) -> Tensor:
        masks = sample_masks(batch.video, self.model.painter, self._generator(self.global_step, batch_idx))
        loss = self._rebuild(batch.video, masks).loss.mean()
        self.log("train/reconstruction_loss", loss, batch_size=len(batch), prog_bar=True)
        return loss

    def validation_step(self, batch: Clip, batch_idx: int) -> None:
        total = batch.video.new_zeros(())
        for ratio in VALIDATION_RATIOS:
            masks = sample_masks(batch.video, self.model.painter, self._generator(-1, batch_idx), ratio)
            loss = self.model.reconstruct(batch.video, masks).loss.mean()
            self.log(f"val/reconstruction_loss@{ratio}", loss, batch_size=len(batch), sync_dist=True)
            total = total + loss / len(VALIDATION_RATIOS)
        self.log("val/reconstruction_loss", total, batch_size=len(batch), sync_dist=True, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.learning_rate, betas=(0.9, 0.95))

    def _generator(self, step: int, batch_idx: int) -> torch.Generator:
        """Gazes are a function of seed, step, batch and rank: a resumed run draws the same."""
        key = hash((self.seed, step, batch_idx, self.global_rank))
        return torch.Generator(self.device).manual_seed(key % 2**63)
