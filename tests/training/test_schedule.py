"""The schedule: by steps or by the clock, whichever is further, down to the end of a run of any length."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytorch_lightning as pl

from autogaze.training.schedule import learning_rate, progress
from autogaze.training.trainer import fit
from tests.pretrain.test_module import Shown, make_module


def test_progress_is_the_larger_of_steps_and_minutes() -> None:
    assert progress(30, 100) == 0.3
    assert progress(30, 100, seconds=30, max_minutes=1) == 0.5
    assert progress(80, 100, seconds=30, max_minutes=1) == 0.8
    assert progress(5, 100, seconds=90, max_minutes=1) == 1.0


def test_the_rate_warms_up_and_ends_at_its_final_share() -> None:
    assert learning_rate(1.0, 0, 0.0, 10, 0.05) == pytest.approx(0.1)
    assert learning_rate(1.0, 10, 0.0, 10, 0.05) == pytest.approx(1.0)
    assert learning_rate(1.0, 500, 0.5, 10, 0.05) == pytest.approx(0.525)
    assert learning_rate(1.0, 1000, 1.0, 10, 0.05) == pytest.approx(0.05)


class Rates(pl.Callback):
    """Remembers the learning rate of every step."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_a_run_that_the_clock_ends_is_annealed(tmp_path: Path) -> None:
    module, rates = make_module(max_minutes=0.02, max_steps=100_000, learning_rate=1e-2), Rates()
    fit(module, Shown(100_000), module.recipe, tmp_path, callbacks=[rates])
    assert max(rates.rates) > 0.9e-2 and rates.rates[-1] == pytest.approx(0.05e-2)
