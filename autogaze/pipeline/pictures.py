"""Overlays in TensorBoard: where the model looks in a few validation clips, drawn at every validation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger

from autogaze.core.overlay import Overlay
from autogaze.pretrain.module import VALIDATION_RATIO, GazeModule
from autogaze.training.data.clip import Clip

CLIPS, FRAMES, PANEL_PX = 2, 4, 320  # the legend of four scales fits above a panel of 320


class Pictures(pl.Callback):
    """Draws the first clips of the first validation batch; each clip is one image, a row a frame."""

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Clip,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        logger, first = trainer.logger, batch_idx == 0 and trainer.is_global_zero
        if not first or trainer.sanity_checking or not isinstance(logger, TensorBoardLogger):
            return
        assert isinstance(pl_module, GazeModule)
        for k, picture in enumerate(draw(pl_module, batch)):
            logger.experiment.add_image(f"gaze/{k}", picture, trainer.global_step, dataformats="HWC")


def draw(module: GazeModule, batch: Clip) -> list[np.ndarray]:
    """One (height, width, 3) uint8 picture for each of a few clips: video, chosen patches, what was looked at."""
    video = batch.video[:CLIPS]
    mask = module.model.generate(video, gazing_ratio=VALIDATION_RATIO).patch_mask().cpu().numpy()
    pixels = module.model.preprocessor.restore(video).cpu().numpy()
    overlay = Overlay(module.model.grid, pixels.shape[2:4], PANEL_PX)
    times = np.linspace(0, pixels.shape[1] - 1, min(FRAMES, pixels.shape[1])).round().astype(int)
    return [
        np.concatenate([overlay.draw(pixels[k, t], mask[k, t], f"frame {t}") for t in times])
        for k in range(len(pixels))
    ]
