"""The plain loop is the definition: it is checked against the published way, written down on its own."""

from __future__ import annotations

import pytest
import torch

from autogaze import AutoGaze, Gaze
from autogaze.decoding.plain import PlainMemory
from benchmarks.published_loop import generate_published
from tests.gaze_models import random_video, small_model, typical_loss


def plain(model: AutoGaze) -> AutoGaze:
    model.decoding = "plain"
    return model


def same(ours: Gaze, theirs: Gaze) -> bool:
    return torch.equal(ours.chosen, theirs.chosen) and torch.equal(ours.ids * ours.chosen, theirs.ids * theirs.chosen)


@pytest.mark.parametrize("group", [1, 3, 4, 7])
@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.5, 1.0])
def test_ids_are_the_published_ones(group: int, ratio: float) -> None:
    model, video = plain(small_model(seed=group, num_multi_token_pred=group)), random_video(3, 4)
    assert same(model.generate(video, ratio), generate_published(model, video, ratio))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("quantile", [0.1, 0.3])
def test_ids_are_the_published_ones_when_clips_stop_at_different_times(seed: int, quantile: float) -> None:
    model, video = plain(small_model(seed)), random_video(3, 5, seed=seed)
    asked = typical_loss(model, video, quantile)
    ours = model.generate(video, task_loss_requirement=asked)
    assert same(ours, generate_published(model, video, task_loss_requirement=asked))
    assert ours.counts.unique().numel() > 1


def test_padding_inside_a_group_stands_in_it_as_eos_while_others_go_on() -> None:
    """The case that ids would differ in if padding were left out there: a hole before a kept id, and a later frame."""
    model, video = plain(small_model()), random_video(3, 5)
    gaze = model.generate(video, task_loss_requirement=typical_loss(model, video, 0.3))
    decoded = gaze.task_loss is not None and ~gaze.task_loss.isnan()
    hole = (decoded & ~gaze.chosen)[..., :-1] & gaze.chosen[..., 1:]
    others = gaze.counts.max(0).values > gaze.counts
    assert bool((hole.any(-1) & others)[:, :-1].any())


def test_only_the_window_is_remembered() -> None:
    memory = PlainMemory(layers=1, window=2)
    for _ in range(5):
        memory.open_frame()
    assert len(memory.frames) == 2


def test_a_clip_within_the_window_never_notices_it() -> None:
    video = random_video(1, 4)
    short, long = (plain(small_model(max_num_frames=window)).generate(video, 0.5).ids for window in (4, 16))
    assert torch.equal(short, long)
    assert not torch.equal(plain(small_model(max_num_frames=1)).generate(video, 0.5).ids, long)
