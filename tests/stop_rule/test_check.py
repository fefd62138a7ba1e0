"""Checking the stop rule: the least that would have done equals a search over all counts, and a rule that stops too
early is told from one that does not."""

from __future__ import annotations

import pytest
import torch

from autogaze.core.gaze import Gaze
from autogaze.model import AutoGaze
from autogaze.pretrain.judge import Judge
from autogaze.pretrain.reconstructor.network import Reconstructor
from autogaze.stop_rule.check import check_stops, smallest_counts, smallest_ratios, useful_requirements
from tests.rl.test_env import TINY, spotted_clip
from tests.rl.test_module import CONFIG


@pytest.fixture
def judge() -> Judge:
    torch.manual_seed(0)
    return Judge(Reconstructor(TINY))


@pytest.fixture
def video() -> torch.Tensor:
    return torch.stack([spotted_clip(seed) for seed in range(3)])


def test_the_least_is_the_first_count_that_does(judge: Judge, video: torch.Tensor) -> None:
    frame = video[:, :1]
    patches = CONFIG.grid.patches_per_frame
    ids = torch.arange(patches).expand(3, 1, patches)
    order = Gaze(ids, torch.ones_like(ids, dtype=torch.bool), CONFIG.grid)
    losses = torch.stack(
        [judge.losses(frame, Gaze(ids[..., :n], order.chosen[..., :n], CONFIG.grid)) for n in range(1, patches + 1)],
        dim=-1,
    )
    falling = losses.cummin(-1).values
    asked = float(falling[..., patches // 2].median())
    if not torch.equal(losses <= asked, falling <= asked):
        pytest.fail("the clips of this test must have losses that cross once")
    wanted = (losses > asked).sum(-1).clamp(max=patches - 1) + 1
    assert torch.equal(smallest_counts(judge.reconstructor, frame, order, asked), wanted.clamp(max=patches))


def test_the_ends_are_everything_and_nothing(judge: Judge, video: torch.Tensor) -> None:
    order = AutoGaze(CONFIG).generate(video, gazing_ratio=0.5)
    assert torch.equal(smallest_counts(judge.reconstructor, video, order, -1.0), order.counts)
    assert int(smallest_counts(judge.reconstructor, video, order, 1e9).sum()) == 0


def test_a_rule_that_stops_too_early_is_not_kept_and_spends_too_little(judge: Judge, video: torch.Tensor) -> None:
    model = AutoGaze(CONFIG)
    asked = useful_requirements(model, judge, [video], points=2)
    assert asked == sorted(asked)
    least = smallest_ratios(model, judge, [video], asked[:1])
    (eager,) = check_stops(model.with_calibration(((asked[0], 1e6),)), judge, [video], asked[:1], least)
    (never,) = check_stops(model.with_calibration(((asked[0], -1e6),)), judge, [video], asked[:1], least)
    assert eager.stopped == 1.0 and eager.kept is not None and eager.kept < 0.5
    assert never.stopped == 0.0 and never.kept is None
    assert eager.ratio < eager.smallest_ratio < never.ratio and eager.loss > never.loss
