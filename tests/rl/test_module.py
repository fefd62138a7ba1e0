"""GRPO on clips with one thing to see: it learns to look there, its gradient is the sampled policy's, and a run that
was cut goes on to the same losses."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from autogaze.model import AutoGaze, AutoGazeConfig
from autogaze.pretrain.judge import Judge
from autogaze.pretrain.module import GazeModule, last_chosen
from autogaze.pretrain.reconstructor.network import Reconstructor
from autogaze.rl.module import GRPOModule
from autogaze.training.data.clip import Clip
from autogaze.training.draws import draw_ratios, step_seed
from autogaze.training.recipes import RLRecipe
from autogaze.training.trainer import fit
from tests.rl.test_env import TINY, spotted_clip

CONFIG = AutoGazeConfig(
    residual_map=False,
    scales=(32, 64),
    hidden_size=24,
    num_hidden_layers=1,
    num_attention_heads=1,
    head_dim=16,
    intermediate_size=32,
    num_multi_token_pred=2,
)
RECIPE = RLRecipe(
    max_steps=30,
    batch_clips=8,
    group_size=6,
    learning_rate=5e-3,
    warmup_steps=3,
    min_gazing_ratio=0.1,
    max_gazing_ratio=0.1,
    weight_decay=0.0,
    validate_every=15,
    checkpoint_every=5,
    accelerator="cpu",
)


class Spots(pl.LightningDataModule):
    """Batches of spotted clips; keeps its place in a checkpoint, as `ClipLoader` does."""

    def __init__(self, batches: int, clips: int = 8) -> None:
        super().__init__()
        self.batches, self.clips = batches, clips

    def train_dataloader(self) -> SpotLoader:
        return SpotLoader(self.batches, self.clips)

    def val_dataloader(self) -> HeldOut:
        return HeldOut(self.clips)


class Begun(pl.Callback):
    """Remembers the step that a run begins with."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.step = trainer.global_step


class SpotLoader:
    def __init__(self, batches: int, clips: int) -> None:
        self.batches, self.clips, self.position = batches, clips, 0

    def __len__(self) -> int:
        return self.batches

    def __iter__(self):  # type: ignore[no-untyped-def]
        while self.position < self.batches:
            self.position += 1
            yield batch(self.position, self.clips)

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class HeldOut:
    def __init__(self, clips: int) -> None:
        self.clips = clips

    def __len__(self) -> int:
        return 1

    def __iter__(self):  # type: ignore[no-untyped-def]
        yield batch(0, self.clips)


def batch(number: int, clips: int) -> Clip:
    return Clip(torch.stack([spotted_clip(number * clips + k, place=(1, 2)) for k in range(clips)]), ())


def make_module(**changes: object) -> GRPOModule:
    torch.manual_seed(0)
    recipe = RLRecipe(**{**RECIPE.__dict__, **changes})  # type: ignore[arg-type]
    return GRPOModule(AutoGaze(CONFIG), Judge(Reconstructor(TINY)), recipe)


def rollouts_of(module: GRPOModule):  # type: ignore[no-untyped-def]
    from autogaze.rl.clock import PhaseClock

    module.clock = PhaseClock(torch.device("cpu"))
    return module.rollout(batch(1, 3).video, 1.0, seed=5)


def assert_it_learns(module: GazeModule, folder: Path) -> None:
    """Thirty steps take four tenths of what a model loses that does not look at the only thing to see."""
    video = batch(0, 8).video
    before = float(module.judge.losses(video, module.model.generate(video, gazing_ratio=0.1)).mean())
    result = fit(module, Spots(30), module.recipe, folder)
    assert result.steps == 30 and result.best <= 0.6 * before


def test_learns_to_look_at_the_only_thing_to_see(tmp_path: Path) -> None:
    assert_it_learns(make_module(), tmp_path)


def test_a_cut_run_goes_on_to_the_same_losses(tmp_path: Path) -> None:
    whole = make_module(max_steps=8, validate_every=4, ema_decay=0.9)
    fit(whole, Spots(8), whole.recipe, tmp_path / "whole")

    class Cut(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):  # type: ignore[no-untyped-def]
            if batch_idx == 6:  # the last checkpoint is of step 5, in the middle of the epoch
                raise KeyError("power cut")

    cut = make_module(max_steps=8, validate_every=4, ema_decay=0.9)
    with pytest.raises(KeyError):
        fit(cut, Spots(8), cut.recipe, tmp_path / "cut", callbacks=[Cut()])
    resumed = make_module(max_steps=8, validate_every=4, ema_decay=0.9)
    begun = Begun()
    fit(resumed, Spots(8), resumed.recipe, tmp_path / "cut", resume=True, callbacks=[begun])
    assert begun.step == 5
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)


def test_rollouts_share_a_budget_and_compare_within_their_clip() -> None:
    rollouts = rollouts_of(make_module(min_gazing_ratio=0.05, max_gazing_ratio=0.5))
    counts = rollouts.gaze.counts.unflatten(0, (6, 3))
    assert bool((counts == counts[:1, :, :1]).all())
    assert rollouts.loss.unflatten(0, (6, 3)).std(0).mean() > 0


def test_the_biased_form_scores_another_policy_than_it_samples() -> None:
    module = make_module()
    rollouts = rollouts_of(module)
    with torch.no_grad():
        log_probs = {
            biased: module.model.score(rollouts.video, rollouts.gaze, None if biased else 1.0).log_action_probs
            for biased in (True, False)
        }
    assert float((log_probs[False] - log_probs[True])[rollouts.gaze.chosen].min()) >= -1e-5
    module_biased = make_module(biased=True)
    gradients = []
    for one in (module, module_biased):
        one.zero_grad()
        one._terms(rollouts, 1.0, None).loss.backward()
        gradients.append(one.model.gaze_decoder.lm_head.weight.grad.clone())
    assert not torch.allclose(gradients[0], gradients[1])


def test_parts_of_an_update_add_up_to_the_whole() -> None:
    module = make_module(task_loss_weight=0.0)
    rollouts = rollouts_of(module)
    whole = module._terms(rollouts, 1.0, None).loss
    parts = sum(module._terms(part, 1.0, None).loss for part in rollouts.split(5))
    torch.testing.assert_close(whole, parts, atol=1e-5, rtol=1e-5)


def test_every_option_trains(tmp_path: Path) -> None:
    changes = {
        "max_steps": 4,
        "updates_per_rollout": 2,
        "clip": 0.2,
        "kl_weight": 0.1,
        "length_price": 0.1,
        "task_loss_requirement": 0.1,
        "temperature": 1.5,
        "final_temperature": 0.5,
        "accumulate": 1,
    }
    module = make_module(**changes)
    assert fit(module, Spots(8), module.recipe, tmp_path).steps == 4


def test_last_chosen_marks_one_slot_a_frame_that_looked() -> None:
    chosen = torch.tensor([[[True, True, False], [False, False, False], [True, False, True]]])
    expected = torch.tensor([[[False, True, False], [False, False, False], [False, False, True]]])
    assert torch.equal(last_chosen(chosen), expected)


def test_seeds_and_budgets_are_of_their_step() -> None:
    seeds = {step_seed(seed, step, rank) for seed in (0, 1) for step in range(50) for rank in range(4)}
    assert len(seeds) == 400
    ratios = draw_ratios(1000, 0.02, 0.2, torch.Generator().manual_seed(0))
    assert 0.02 <= float(ratios.min()) < 0.025 and 0.17 < float(ratios.max()) <= 0.2
