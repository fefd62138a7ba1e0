"""Pretraining: imitates what it is shown, learns the losses that were recorded, and goes on where it was cut."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from autogaze.core.gaze import Gaze
from autogaze.model import AutoGaze
from autogaze.pretrain.judge import Judge
from autogaze.pretrain.module import PretrainModule
from autogaze.pretrain.reconstructor.network import Reconstructor
from autogaze.training.callbacks import NotFiniteError
from autogaze.training.data.clip import Clip
from autogaze.training.recipes import PretrainRecipe
from autogaze.training.trainer import MONITOR, fit
from tests.rl.test_env import TINY, spotted_clip
from tests.rl.test_module import CONFIG, Begun

RECIPE = PretrainRecipe(
    max_steps=40,
    batch_clips=4,
    learning_rate=1e-2,
    warmup_steps=3,
    validate_every=20,
    checkpoint_every=10,
    accelerator="cpu",
    weight_decay=0.0,
)
SHOWN = (9, 0, 17)  # ids that every frame of every label looks at, in this order


class Shown(pl.LightningDataModule):
    """Labels that always look at the same places, with losses that fall from 0.3."""

    def __init__(self, batches: int, scale: float = 1.0) -> None:
        super().__init__()
        self.batches, self.scale = batches, scale

    def train_dataloader(self) -> Batches:
        return Batches(self.batches, self.scale)

    def val_dataloader(self) -> Batches:
        return Batches(1, 1.0)


class Kept(Shown):
    """The same, with a loader that keeps its place in a checkpoint, as `ClipLoader` does."""

    def train_dataloader(self) -> Batches:
        return KeptBatches(self.batches, self.scale)


class Batches:
    def __init__(self, batches: int, scale: float) -> None:
        self.batches, self.scale = batches, scale

    def __len__(self) -> int:
        return self.batches

    def __iter__(self):  # type: ignore[no-untyped-def]
        for number in range(self.batches):
            video = torch.stack([spotted_clip(4 * number + k) for k in range(4)]) * self.scale
            ids = torch.tensor(SHOWN).expand(4, 3, 3)
            gaze = Gaze(ids, torch.ones_like(ids, dtype=torch.bool), CONFIG.grid)
            yield Clip(video, (), gaze, torch.tensor([0.3, 0.2, float("nan")]).expand(4, 3, 3))


class KeptBatches(Batches):
    position = 0

    def __iter__(self):  # type: ignore[no-untyped-def]
        for number, clip in enumerate(super().__iter__()):
            if number >= self.position:
                self.position += 1
                yield clip

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def make_module(**changes: object) -> PretrainModule:
    torch.manual_seed(0)
    recipe = PretrainRecipe(**{**RECIPE.__dict__, **changes})  # type: ignore[arg-type]
    return PretrainModule(AutoGaze(CONFIG), Judge(Reconstructor(TINY)), recipe)


def test_the_gate_learns_at_its_own_rate(tmp_path: Path) -> None:
    module = make_module(max_steps=2, learning_rate=1e-3, gate_rate=5.0, warmup_steps=1, final_learning_rate=1.0)
    module.model = AutoGaze(replace(CONFIG, residual_map=True, perceptual=True))
    fit(module, Shown(2), module.recipe, tmp_path)
    (*others, gate) = module.trainer.optimizers[0].param_groups
    assert module.model.residual_map is not None and module.model.residual_map.gate is not None
    assert {id(p) for p in gate["params"]} == {id(p) for p in module.model.residual_map.gate.parameters()}
    assert gate["lr"] == pytest.approx(5e-3) and {group["lr"] for group in others} == {1e-3}


def test_imitates_what_it_is_shown_and_tells_the_losses(tmp_path: Path) -> None:
    module = make_module()
    result = fit(module, Shown(40), module.recipe, tmp_path)
    video = next(iter(Batches(1, 1.0))).video
    gaze = module.model.generate(video, gazing_ratio=3 / 20)
    assert result.steps == 40
    assert float((gaze.ids == torch.tensor(SHOWN)).float().mean()) == 1.0
    predicted = module.model.score(video, gaze).task_loss_prediction.detach()
    torch.testing.assert_close(predicted[..., :2].mean((0, 1)), torch.tensor([0.3, 0.2]), atol=0.08, rtol=0)


def test_what_is_trained_is_what_generate_does() -> None:
    module = make_module()
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    for matrix in (p for p in module.model.gaze_decoder.parameters() if p.ndim == 2):
        matrix.data *= 8  # positions matter to attention that is far from even
    video = next(iter(Batches(1, 1.0))).video
    gaze = module.model.generate(video, gazing_ratio=0.4)  # 8 ids a frame in groups of 2
    loss = module.training_step(Clip(video, (), gaze, torch.full(gaze.ids.shape, float("nan"))), 0)
    scores = module.model.score(video, gaze, as_decoded=True)
    assert gaze.task_loss is not None
    torch.testing.assert_close(scores.task_loss_prediction[..., :-1], gaze.task_loss[..., 1:])
    torch.testing.assert_close(loss, -scores.log_action_probs.sum((1, 2)).mean() / gaze.counts.sum(1).float().mean())
    assert not torch.allclose(loss, -module.model.score(video, gaze).log_action_probs.sum() / gaze.counts.sum())


def test_a_cut_run_goes_on_to_the_same_losses(tmp_path: Path) -> None:
    curves = []
    for name in ("whole", "cut"):
        module = make_module(max_steps=8, validate_every=4, checkpoint_every=3, ema_decay=0.9)
        if name == "cut":
            with pytest.raises(KeyError):
                fit(module, Kept(8), module.recipe, tmp_path / name, callbacks=[PowerCut()])
            module = make_module(max_steps=8, validate_every=4, checkpoint_every=3, ema_decay=0.9)
        begun = Begun()
        fit(module, Kept(8), module.recipe, tmp_path / name, resume=name == "cut", callbacks=[begun])
        assert begun.step == (3 if name == "cut" else 0)
        with (tmp_path / name / "metrics.csv").open() as file:
            curves.append([{k: v for k, v in row.items() if k != "minutes"} for row in csv.DictReader(file)])
    assert len(curves[0]) == 2 and curves[0] == curves[1]


class PowerCut(pl.Callback):
    """Ends a run in the middle of an epoch, two steps after its last checkpoint."""

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int
    ) -> None:
        if batch_idx == 5:
            raise KeyError("power cut")


def test_a_stage_leaves_a_model_a_curve_a_checkpoint_and_its_recipe(tmp_path: Path) -> None:
    module = make_module(max_steps=4, validate_every=2)
    fit(module, Shown(4), module.recipe, tmp_path)
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert MONITOR in rows[0] and [float(row.split(",")[0]) for row in rows[1:]] == [2.0, 4.0]
    assert AutoGaze.from_pretrained(tmp_path).config.scales == CONFIG.scales
    assert (tmp_path / "last.ckpt").is_file() and "max_steps: 4" in (tmp_path / "recipe.yaml").read_text()
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_a_stage_that_is_over_is_not_run_again(tmp_path: Path) -> None:
    module = make_module(max_steps=4, validate_every=2)
    first = fit(module, Shown(4), module.recipe, tmp_path)
    before = (tmp_path / "last.ckpt").stat().st_mtime_ns
    assert fit(module, Shown(4), module.recipe, tmp_path, resume=True) == first
    assert (tmp_path / "last.ckpt").stat().st_mtime_ns == before
    longer = make_module(max_steps=6, validate_every=2)
    assert fit(longer, Shown(6), longer.recipe, tmp_path, resume=True).steps == 6


def test_the_clock_ends_a_run(tmp_path: Path) -> None:
    module = make_module(max_minutes=0.02, max_steps=100_000)
    result = fit(module, Shown(100_000), module.recipe, tmp_path)
    assert result.steps < 2000 and (tmp_path / "metrics.csv").is_file()


def test_a_loss_that_is_not_a_number_stops_with_words_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    module = make_module(max_steps=4, validate_every=2)
    fit(module, Shown(4), module.recipe, tmp_path)
    kept = (tmp_path / "last.ckpt").read_bytes()
    broken = make_module(max_steps=20)
    with pytest.raises(NotFiniteError, match="learning_rate"):
        fit(broken, Shown(20, scale=float("nan")), broken.recipe, tmp_path, resume=True)
    assert (tmp_path / "last.ckpt").read_bytes() == kept


def test_a_batch_without_a_known_loss_trains_the_choice_alone() -> None:
    module = make_module()
    logged: dict[str, torch.Tensor] = {}
    module.log = lambda name, value, **_: logged.update({name: value})  # type: ignore[method-assign]
    clip = next(iter(Batches(1, 1.0)))
    assert clip.task_loss is not None
    module.training_step(replace(clip, task_loss=torch.full_like(clip.task_loss, float("nan"))), 0).backward()
    gradients = [p.grad for p in module.model.parameters() if p.grad is not None]
    assert float(logged["train/task_loss_prediction_loss"].detach()) == 0.0
    assert all(g.isfinite().all() for g in gradients) and any(g.abs().max() > 0 for g in gradients)


def test_weights_are_averaged_where_asked(tmp_path: Path) -> None:
    plain = make_module(max_steps=6, validate_every=6)
    averaged = make_module(max_steps=6, validate_every=6, ema_decay=0.9)
    for module, folder in ((plain, "plain"), (averaged, "averaged")):
        fit(module, Shown(6), module.recipe, tmp_path / folder)
    kept = {name: AutoGaze.from_pretrained(tmp_path / name).connector.pos_embed for name in ("plain", "averaged")}
    torch.testing.assert_close(plain.model.connector.pos_embed, averaged.model.connector.pos_embed)
    assert not torch.allclose(kept["plain"], kept["averaged"])
