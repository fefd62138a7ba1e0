"""The loss head, fitted: it learns what the stop rule asks, and nothing else changes."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from autogaze.decoding.scoring import loss_states
from autogaze.model import AutoGaze
from autogaze.pretrain.judge import Judge
from autogaze.pretrain.reconstructor.network import Reconstructor
from autogaze.stop_rule.loss_head import fit_loss_head
from tests.gaze_models import random_video
from tests.rl.test_env import TINY, spotted_clip
from tests.rl.test_module import CONFIG


def make() -> tuple[AutoGaze, Judge, list[torch.Tensor]]:
    torch.manual_seed(0)
    clips = [torch.stack([spotted_clip(seed, frames=4) for seed in range(k, k + 6)]) for k in (0, 6)]
    return AutoGaze(CONFIG).eval(), Judge(Reconstructor(TINY)), clips


def test_states_and_rows_are_those_of_the_predicted_loss() -> None:
    model, _, (video, _) = make()
    gaze = model.generate(video, gazing_ratio=torch.tensor([[0.3, 0.1, 0.5, 0.2]]).expand(6, 4))
    states, rows = loss_states(model, video, gaze)
    weight = model.gaze_decoder.task_loss_prediction_head.weight
    predicted = (states * weight[rows]).sum(-1)
    expected = model.score(video, gaze, as_decoded=True).task_loss_prediction
    torch.testing.assert_close(predicted[gaze.chosen], expected[gaze.chosen], atol=1e-6, rtol=1e-5)
    assert gaze.task_loss is not None  # of which each is what is predicted before an id, that is after the one before
    inside = gaze.chosen[..., 1:]
    torch.testing.assert_close(predicted[..., :-1][inside], gaze.task_loss[..., 1:][inside], atol=1e-5, rtol=1e-4)


def test_the_fitted_head_tells_losses_and_nothing_else_changes() -> None:
    model, judge, clips = make()
    before = copy.deepcopy(model.state_dict())
    fit = fit_loss_head(model, judge, clips * 3)
    assert fit.samples == 3 * 2 * 6 * 4
    assert fit.after < 0.5 < 1.0 < fit.before
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert changed == ["gaze_decoder.task_loss_prediction_head.weight"]


def test_the_same_seed_fits_the_same_head() -> None:
    weights = []
    for seed in (1, 1, 2):
        model, judge, clips = make()
        fit_loss_head(model, judge, clips, seed)
        weights.append(model.gaze_decoder.task_loss_prediction_head.weight)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_the_weights_of_the_residual_map_are_fitted_instead_and_stay_positive() -> None:
    _, judge, _ = make()
    clips = [random_video(6, 4, seed=seed) for seed in (0, 1)]  # of which something is always left to be seen
    model = AutoGaze(replace(CONFIG, residual_map=True)).eval()
    assert model.residual_map is not None
    model.residual_map.weight.data = torch.tensor([9.0, 9.0])
    before = copy.deepcopy(model.state_dict())
    fit = fit_loss_head(model, judge, clips * 3)
    assert fit.after < 0.5 < 1.0 < fit.before
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert changed == ["residual_map.weight"] and bool((model.residual_map.weight >= 0).all())
    gaze = model.generate(clips[0], gazing_ratio=0.3)
    last = gaze.counts[..., None] - 1
    predicted = model.score(clips[0], gaze).task_loss_prediction.gather(2, last).squeeze(2)
    truth = judge.losses(clips[0], gaze)
    assert float(((predicted - truth).abs() / truth).mean()) < 0.5
