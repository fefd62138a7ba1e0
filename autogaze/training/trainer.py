"""One stage of training under Lightning's Trainer: callbacks, precision, devices, where files go.

A stage's folder holds `last.ckpt` (to go on from), the best model in its published form, `metrics.csv` (one row a
validation), `recipe.yaml` and TensorBoard logs.
"""

from __future__ import annotations

import contextlib
import csv
import logging
import sys
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.loggers import TensorBoardLogger

from autogaze.files import write_text
from autogaze.training.callbacks import (
    AtomicCheckpointIO,
    Bar,
    Curve,
    Interruptible,
    KeepBest,
    KeepLast,
    MovingAverage,
    Pace,
    StopOnNaN,
)
from autogaze.training.ranks import Ranks
from autogaze.training.recipes import RLRecipe, TrainerRecipe
from autogaze.training.schedule import progress
from autogaze.training.world import environment, is_launched, rank, wait, world

MONITOR = "val/reconstruction_loss"
LAST, CURVE, RECIPE = "last.ckpt", "metrics.csv", "recipe.yaml"
LOG_EVERY = 10  # batches


@dataclass(frozen=True)
class StageResult:
    """Result of a stage."""

    steps: int
    minutes: float
    best: float  # lowest reconstruction loss in validation


def fit(
    module: pl.LightningModule,
    data: pl.LightningDataModule,
    recipe: TrainerRecipe,
    folder: Path,
    resume: bool = False,
    callbacks: Iterable[pl.Callback] = (),
) -> StageResult:
    """Train until the recipe's steps or minutes are over.

    On several devices it runs in every process (see `autogaze.training.world`); the first one writes the files.

    Args:
        module: has `.model` with `save_pretrained`, logs `val/reconstruction_loss`, reads `run_progress`.
        data: its training loader keeps its place in a checkpoint (see `ClipLoader`).
        recipe: knobs of the run.
        folder: of the stage.
        resume: go on from `last.ckpt` where there is one.
        callbacks: further ones.
    """
    if resume and (result := finished(folder, recipe)):
        return result
    last = folder / LAST
    folder.mkdir(parents=True, exist_ok=True)
    quiet_lightning()
    if rank() == 0:
        write_text(folder / RECIPE, yaml.safe_dump(asdict(recipe), sort_keys=False))
    trainer = make_trainer(recipe, folder, callbacks)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")
        warnings.filterwarnings("ignore", ".*dataloader has no length.*")
        warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*")
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for results
            trainer.fit(module, data, ckpt_path=last if resume and last.is_file() else None, weights_only=False)
    wait()
    return read_result(folder, last)


def make_trainer(recipe: TrainerRecipe, folder: Path, callbacks: Iterable[pl.Callback] = ()) -> pl.Trainer:
    """Lightning's Trainer for a recipe."""
    if recipe.devices > 1 and not is_launched():
        raise ValueError(
            "training on several devices needs one process each: use `autogaze train`, torchrun or "
            "autogaze.training.launch"
        )
    here = world()
    gpu = recipe.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    bf16 = recipe.precision == "bf16" or (recipe.precision == "auto" and gpu)
    if gpu:
        torch.set_float32_matmul_precision("high")
    manual = isinstance(recipe, RLRecipe)  # its module steps, clips and accumulates by itself
    pace = Pace(recipe)
    bar = Bar(recipe, pace)
    own: list[pl.Callback] = [bar, Interruptible(), pace, StopOnNaN(LOG_EVERY), KeepBest(MONITOR, folder)]
    if recipe.ema_decay:
        own.append(MovingAverage(recipe.ema_decay))
    own += [*callbacks, Curve(folder / CURVE, pace), KeepLast(folder / LAST, recipe.checkpoint_every)]
    return pl.Trainer(
        accelerator=recipe.accelerator,
        devices=here.local_size,
        num_nodes=here.nodes,
        precision="bf16-mixed" if bf16 else "32-true",
        strategy=Ranks() if here.size > 1 else "auto",
        max_epochs=-1,
        callbacks=own,
        gradient_clip_val=None if manual or not recipe.gradient_clip else recipe.gradient_clip,
        accumulate_grad_batches=1 if manual else recipe.accumulate,
        val_check_interval=batches_of(recipe, recipe.validate_every),
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=LOG_EVERY,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        plugins=[AtomicCheckpointIO(), environment()],
        logger=TensorBoardLogger(folder, name="", version="tensorboard"),
    )


def batches_of(recipe: TrainerRecipe, steps: int) -> int:
    """The number of batches in so many optimiser steps."""
    updates = recipe.updates_per_rollout if isinstance(recipe, RLRecipe) else 1
    return -(-steps * recipe.accumulate // updates)


def finished(folder: Path, recipe: TrainerRecipe) -> StageResult | None:
    """The result that a stage left behind, if it has used up its steps or minutes."""
    last = folder / LAST
    return read_result(folder, last) if last.is_file() and is_over(last, recipe) else None


def is_over(checkpoint: Path, recipe: TrainerRecipe) -> bool:
    """Whether a checkpoint has used up the steps or minutes of a recipe."""
    steps, minutes = spent(checkpoint)
    return progress(steps, recipe.max_steps, 60 * minutes, recipe.max_minutes) >= 1.0


def spent(checkpoint: Path) -> tuple[int, float]:
    """Optimiser steps and minutes of a checkpoint."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=False, mmap=True)
    return state["global_step"], state["callbacks"]["Pace"]["seconds"] / 60


def read_result(folder: Path, checkpoint: Path) -> StageResult:
    """The result that a finished stage left behind."""
    with (folder / CURVE).open(newline="", encoding="utf-8") as file:
        values = [float(row[MONITOR]) for row in csv.DictReader(file) if row.get(MONITOR)]
    steps, minutes = spent(checkpoint)
    return StageResult(steps, round(minutes, 3), min(values))


def quiet_lightning() -> None:
    """Lightning's advice about hardware and workers is not for the users of a command."""
    for name in (
        "pytorch_lightning.utilities.rank_zero",
        "lightning.pytorch.utilities.rank_zero",
        "lightning_fabric.utilities.rank_zero",
        "pytorch_lightning.trainer.connectors.checkpoint_connector",  # how it reads checkpoints that we wrote
    ):
        logging.getLogger(name).setLevel(logging.WARNING)
