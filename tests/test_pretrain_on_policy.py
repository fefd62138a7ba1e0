"""Imitation on the model's own states: the teacher goes on from what the model has seen, and the model follows it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autogaze.gaze import Gaze
from autogaze.model import AutoGaze
from autogaze.pretrain.judge import Judge
from autogaze.pretrain.on_policy import OnPolicyModule
from autogaze.pretrain.recipes import PretrainRecipe
from autogaze.pretrain.reconstructor import Reconstructor
from autogaze.selectors.difference import DifferenceSelector
from tests.test_rl_env import TINY, spotted_clip
from tests.test_rl_module import CONFIG, assert_it_learns, batch

RECIPE = PretrainRecipe(max_steps=30, batch_clips=8, learning_rate=5e-3, warmup_steps=3, on_policy=True,
                        min_gazing_ratio=0.1, max_gazing_ratio=0.1, weight_decay=0.0, validate_every=15,
                        checkpoint_every=15, accelerator="cpu")


def make_module() -> OnPolicyModule:
    torch.manual_seed(0)
    return OnPolicyModule(AutoGaze(CONFIG), Judge(Reconstructor(TINY)), RECIPE)


@pytest.mark.parametrize("start", [0, 1, 3])
def test_the_teacher_goes_on_with_itself_as_it_would_have_done(start: int) -> None:
    teacher = DifferenceSelector(CONFIG.grid)
    video = torch.stack([spotted_clip(seed, frames=3) for seed in range(2)])
    budget = torch.tensor([[2, 1, 3], [1, 2, 2]])
    whole = teacher.choose(video, budget)
    resumed = teacher.choose(video, budget, begun=whole, start=torch.tensor([start, 1]))
    assert torch.equal(resumed.ids, whole.ids) and torch.equal(resumed.chosen, whole.chosen)


def test_the_teacher_makes_good_what_was_missed() -> None:
    grid = CONFIG.grid
    video = spotted_clip(0, place=(1, 2))[None]
    spot = grid.offsets[1] + 1 * 4 + 2  # the fine patch over the only thing to see
    begun = Gaze(torch.tensor([[[spot - 1], [spot], [0]]]), torch.ones(1, 3, 1, dtype=torch.bool), grid)
    budget = torch.ones(1, 3, dtype=torch.int64)
    teacher = DifferenceSelector(grid)
    missed = teacher.choose(video, budget, begun=begun, start=torch.tensor([1]))
    assert missed.ids[0, :, 0].tolist()[:2] == [spot - 1, spot]


def test_the_models_own_gaze_comes_first_and_is_not_imitated() -> None:
    module = make_module()
    video = batch(0, 8).video
    gaze, corrected = module.correct(video, torch.Generator().manual_seed(3))
    own = module.model.generate(video, gazing_ratio=0.1)
    assert torch.equal(gaze.counts, own.counts)
    first = corrected.any(-1).float().argmax(1)
    assert 0 < int(corrected.sum()) < int(gaze.chosen.sum()) and len(first.unique()) > 1
    for clip in range(8):
        assert torch.equal(gaze.ids[clip, : first[clip]], own.ids[clip, : first[clip]])
        assert corrected[clip, first[clip] :].equal(gaze.chosen[clip, first[clip] :])


def test_learns_to_look_at_the_only_thing_to_see(tmp_path: Path) -> None:
    assert_it_learns(make_module(), tmp_path)


def test_budgets_must_be_a_range() -> None:
    with pytest.raises(ValueError, match="0 < min_gazing_ratio <= max_gazing_ratio <= 1, got 0.5 and 0.4"):
        replace(RECIPE, min_gazing_ratio=0.5, max_gazing_ratio=0.4)
