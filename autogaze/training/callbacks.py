"""Callbacks around every training step: the clock, the learning rate, averages, curves and checkpoints.

Each is a Lightning callback that keeps its state in the checkpoint, so that a resumed run goes on as if unbroken.
"""

from __future__ import annotations

import csv
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from autogaze.files import atomic_path
from autogaze.interrupt import reinstall
from autogaze.training.ranks import share
from autogaze.training.recipes import TrainerRecipe
from autogaze.training.schedule import learning_rate, progress

RATE = "rate"  # of a group of parameters: its learning rate, as a multiple of the run's


class NotFiniteError(ValueError):
    """The loss became NaN or infinite; the last checkpoint is intact."""


class Pace(pl.Callback):
    """Sets the learning rate, counts the minutes over all resumed runs, ends the run in time."""

    def __init__(self, recipe: TrainerRecipe) -> None:
        self.recipe, self.spent_s, self._since, self._over = recipe, 0.0, 0.0, False

    @property
    def seconds(self) -> float:
        return self.spent_s + (time.monotonic() - self._since if self._since else 0.0)

    def done(self, step: int) -> float:
        """Share of the run that is over, in [0, 1]."""
        return progress(step, self.recipe.max_steps, self.seconds, self.recipe.max_minutes)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = time.monotonic()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        done = self.done(trainer.global_step)
        if self.recipe.max_minutes is not None:
            done = share(trainer, done)  # every rank must stop at the same step, and clocks differ
        pl_module.run_progress = done  # type: ignore[assignment]
        rate = learning_rate(
            self.recipe.learning_rate,
            trainer.global_step,
            done,
            self.recipe.warmup_steps,
            self.recipe.final_learning_rate,
        )
        for group in (group for optimizer in trainer.optimizers for group in optimizer.param_groups):
            group["lr"] = rate * group.get(RATE, 1.0)
        self._over = done >= 1.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._over or trainer.global_step >= self.recipe.max_steps:
            trainer.should_stop = True  # Lightning validates once more, then ends

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.spent_s, self._since = self.seconds, 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.spent_s = state_dict["seconds"]


class Bar(TQDMProgressBar):
    """Batches, time and numbers of a stage; no bar for validation, no time left where a clock may end the stage."""

    def __init__(self, recipe: TrainerRecipe, pace: Pace) -> None:
        often = 1 if sys.stderr.isatty() else recipe.max_steps // 20  # a log file wants few lines
        super().__init__(refresh_rate=min(200, max(1, often)))
        self.recipe, self.pace = recipe, pace

    def init_train_tqdm(self) -> Tqdm:
        limit = self.recipe.max_minutes
        left = f"at most {limit:g} min" if limit is not None else "{remaining} left"
        form = "{percentage:3.0f}%|{bar:20}| batch {n_fmt}/{total_fmt} [{elapsed}, " + left + "{postfix}]"
        return Tqdm(disable=self.is_disabled, dynamic_ncols=True, file=sys.stderr, smoothing=0, bar_format=form)

    def init_validation_tqdm(self) -> Tqdm:
        return Tqdm(disable=True)

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}


class Interruptible(pl.Callback):
    """Lets signals end a run at once. Lightning's own handler for SIGTERM, which it puts in front, waits for every rank
    to come by, and then ends the run as if it had been finished."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        reinstall()


class StopOnNaN(pl.Callback):
    """Ends the run with a clear message once the loss is not a number; looks every `every` steps (a host sync)."""

    def __init__(self, every: int) -> None:
        self.every = every

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if batch_idx % self.every or not isinstance(loss, Tensor):
            return
        if share(trainer, float(not math.isfinite(float(loss))), largest=True):  # of any rank
            raise NotFiniteError(
                f"the loss is not finite at step {trainer.global_step}: lower learning_rate, or resume "
                "from the last checkpoint with --resume"
            )


class MovingAverage(pl.Callback):
    """Exponential moving average of the trained weights; validation and what is kept see the average."""

    def __init__(self, decay: float) -> None:
        self.decay, self.average = decay, {}  # type: float, dict[str, Tensor]
        self._step = 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trained = dict(_trained(pl_module))
        if not self.average:
            self.average = {name: parameter.detach().clone() for name, parameter in trained.items()}
        self.average = {name: value.to(trained[name].device) for name, value in self.average.items()}

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:
            return  # a batch of an accumulation: nothing changed
        self._step = trainer.global_step
        decay = min(self.decay, (1 + self._step) / (10 + self._step))  # a short run is not held at its start
        names, values = zip(*_trained(pl_module), strict=True)
        torch._foreach_lerp_([self.average[name] for name in names], [value.detach() for value in values], 1 - decay)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._swap(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._swap(pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average, "step": self._step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.average, self._step = state_dict["average"], state_dict["step"]

    @torch.no_grad()
    def _swap(self, pl_module: pl.LightningModule) -> None:
        for name, parameter in _trained(pl_module):
            kept = parameter.detach().clone()
            parameter.copy_(self.average[name])
            self.average[name].copy_(kept)


class Curve(pl.Callback):
    """Appends one row a validation to `metrics.csv`: step, minutes, on a GPU the most memory that tensors have taken so
    far (MiB), and every logged number."""

    def __init__(self, path: Path, pace: Pace) -> None:
        self.path, self.pace = path, pace
        self.rows: list[dict[str, float]] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        row = {"step": float(trainer.global_step), "minutes": round(self.pace.seconds / 60, 3)}
        if pl_module.device.type == "cuda":
            row["peak_memory_mib"] = round(torch.cuda.max_memory_allocated(pl_module.device) / 2**20, 1)
        row |= {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
        self.rows = [kept for kept in self.rows if kept["step"] < row["step"]] + [row]
        if trainer.is_global_zero:
            self._write()

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]

    def _write(self) -> None:
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        with atomic_path(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows)


class KeepBest(pl.Callback):
    """Writes the model in its published form whenever the watched number is the lowest so far."""

    def __init__(self, monitor: str, folder: Path) -> None:
        self.monitor, self.folder, self.best = monitor, folder, math.inf

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        value = float(trainer.callback_metrics[self.monitor])
        if value < self.best:
            self.best = value
            if trainer.is_global_zero:
                pl_module.model.save_pretrained(self.folder)  # type: ignore[union-attr,operator]

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]


class KeepLast(pl.Callback):
    """Writes the checkpoint that `--resume` goes on from, every so many steps and at the end."""

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every, self._saved = path, every, -1

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step != self._saved and step // self.every > max(0, self._saved) // self.every:
            self._saved = step
            trainer.save_checkpoint(self.path)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.save_checkpoint(self.path)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that are whole or absent, also when the process is killed or the disk is full."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())


def _trained(pl_module: pl.LightningModule) -> list[tuple[str, Tensor]]:
    return [(name, parameter) for name, parameter in pl_module.named_parameters() if parameter.requires_grad]
