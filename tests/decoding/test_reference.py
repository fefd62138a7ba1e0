"""The reference is the definition: it is checked against the published way and scoring, written down on their own."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from autogaze import AutoGaze, Gaze
from autogaze.decoding.reference import Memory
from autogaze.decoding.scoring import score_all
from benchmarks.published_loop import generate_published
from tests.gaze_models import random_video, small_model, typical_loss


def reference(model: AutoGaze) -> AutoGaze:
    model.decoding = "reference"
    return model


def same(ours: Gaze, theirs: Gaze) -> bool:
    return torch.equal(ours.chosen, theirs.chosen) and torch.equal(ours.ids * ours.chosen, theirs.ids * theirs.chosen)


@pytest.mark.parametrize("group", [1, 3, 4, 7])
@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.5, 1.0])
def test_ids_are_the_published_ones(group: int, ratio: float) -> None:
    model, video = reference(small_model(seed=group, num_multi_token_pred=group)), random_video(3, 4)
    assert same(model.generate(video, ratio), generate_published(model, video, ratio))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("quantile", [0.1, 0.3])
def test_ids_of_a_clip_that_may_stop_are_the_published_ones_of_the_clip_alone(seed: int, quantile: float) -> None:
    model, video = reference(small_model(seed)), random_video(3, 5, seed=seed)
    asked = typical_loss(model, video, quantile)
    ours = model.generate(video, task_loss_requirement=asked)
    for i in range(3):
        alone, width = generate_published(model, video[i : i + 1], task_loss_requirement=asked), ours.ids.shape[-1]
        padded = [F.pad(part, (0, width - part.shape[-1])) for part in (alone.ids, alone.chosen)]
        assert same(ours[i : i + 1], Gaze(*padded, model.grid))
    assert ours.counts.unique().numel() > 1


@pytest.mark.parametrize("residual_map", [False, True])
@pytest.mark.parametrize("quantile", [None, 0.3])
def test_every_id_is_the_best_that_scoring_knows(residual_map: bool, quantile: float | None) -> None:
    """The choice step by step is the arg-max of the logits that scoring finds all at once."""
    model, video = reference(small_model(residual_map=residual_map)), random_video(3, 4)
    gaze = model.generate(video, 0.7, None if quantile is None else typical_loss(model, video, quantile))
    logits, _ = score_all(model, video, gaze, as_decoded=True)
    taken = F.one_hot(gaze.ids, logits.shape[-1]).bool() & gaze.chosen[..., None]
    before = (taken.cumsum(2) > taken) & True
    best = logits[..., :-1].masked_fill(before[..., :-1], -torch.inf).argmax(-1)
    # An id that the stop rule left out is taken all the same, and those after it in its group cannot be it.
    whole = (gaze.chosen | (gaze.task_loss.isnan())).cummin(-1).values & gaze.chosen
    assert torch.equal(best[whole], gaze.ids[whole]) and whole.float().mean() > 0.2


def test_only_the_window_is_remembered() -> None:
    decoder = small_model().gaze_decoder
    memory = Memory(decoder, batch=1, window=2, capacity=2 * 20)
    for _ in range(5):
        memory.open_frame(torch.zeros(1, 16, 32))
    assert memory.frame_lengths == [16, 16] and memory.length == 32


def test_a_clip_within_the_window_never_notices_it() -> None:
    video = random_video(1, 4)
    short, long = (reference(small_model(max_num_frames=window)).generate(video, 0.5).ids for window in (4, 16))
    assert torch.equal(short, long)
    assert not torch.equal(reference(small_model(max_num_frames=1)).generate(video, 0.5).ids, long)
