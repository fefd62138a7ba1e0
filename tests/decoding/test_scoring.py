"""Scores are what generating does: probabilities that sum to one, that samples follow, that padding cannot change."""

from __future__ import annotations

import pytest
import torch

from autogaze import AutoGaze, Gaze
from tests.gaze_models import random_video, small_model, typical_loss


def alternatives(gaze: Gaze, slot: int) -> Gaze:
    """One clip's gaze with every id in turn at a slot of its last frame that the slots before leave free."""
    taken = set(gaze.ids[0, -1, :slot].tolist())
    free = torch.tensor([i for i in range(gaze.grid.patches_per_frame) if i not in taken])
    ids = gaze.ids.repeat(len(free), 1, 1)
    ids[:, -1, slot] = free
    chosen = gaze.chosen.repeat(len(free), 1, 1)
    chosen[:, -1, slot + 1 :] = False
    return Gaze(ids, chosen, gaze.grid)


def log_probs_at(model: AutoGaze, video: torch.Tensor, gaze: Gaze, slot: int, temperature: float) -> torch.Tensor:
    with torch.no_grad():
        return model.score(video.expand(len(gaze.ids), -1, -1, -1, -1), gaze, temperature).log_action_probs[:, -1, slot]


@pytest.mark.parametrize("slot", [0, 2, 3, 4, 6, 8, 9])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_probabilities_sum_to_one_and_the_best_id_is_the_one_that_was_chosen(slot: int, temperature: float) -> None:
    model, video = small_model(), random_video(1, 3)
    gaze = model.generate(video, 0.5)
    others = alternatives(gaze, slot)
    log_probs = log_probs_at(model, video, others, slot, temperature)
    assert float(log_probs.exp().sum()) == pytest.approx(1, abs=1e-4)
    assert others.ids[log_probs.argmax(), -1, slot] == gaze.ids[0, -1, slot]


@pytest.mark.parametrize("slot", [0, 5])
def test_samples_follow_the_scored_policy(slot: int) -> None:
    model, count = small_model(), 3000
    video = random_video(1, 1)
    samples = model.generate(
        video.expand(count, -1, -1, -1, -1), 0.3, temperature=2.0, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        log_probs = model.score(video.expand(count, -1, -1, -1, -1), samples, 2.0).log_action_probs[:, 0]
    # The mean of 1 / p over samples counts the ids a slot could have taken, whatever the policy is.
    free = 21 - slot
    assert float((-log_probs[:, slot]).exp().clamp(max=1e3).mean()) == pytest.approx(free, rel=0.25)
    if slot == 0:
        shares = torch.bincount(samples.ids[:, 0, 0], minlength=21) / count
        every = alternatives(samples[:1], 0)
        torch.testing.assert_close(shares, log_probs_at(model, video, every, 0, 2.0).exp(), atol=0.03, rtol=0)


def test_the_loss_predicted_after_a_token_is_the_one_before_the_next() -> None:
    model, video = small_model(), random_video(2, 3)
    gaze = model.generate(video, 0.6)
    with torch.no_grad():
        after = model.score(video, gaze, as_decoded=True).task_loss_prediction
    assert gaze.task_loss is not None
    torch.testing.assert_close(after[..., :-1], gaze.task_loss[..., 1:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("temperature", [None, 1.0])
def test_padding_cannot_change_a_score(temperature: float | None) -> None:
    model, video = small_model(), random_video(2, 4)
    gaze = model.generate(video, None, typical_loss(model, video))
    assert not bool(gaze.chosen.all())
    noise = torch.randint_like(gaze.ids, 21)
    wider = Gaze.join(
        [gaze, Gaze(torch.zeros(2, 1, 30, dtype=torch.int64), torch.zeros(2, 1, 30, dtype=torch.bool), gaze.grid)]
    )
    with torch.no_grad():
        expected = model.score(video, gaze, temperature)
        other = model.score(video, Gaze(gaze.ids.where(gaze.chosen, noise), gaze.chosen, gaze.grid), temperature)
        longer = model.score(torch.cat([video, video[:, :1]], 1), wider, temperature)
    for name in ("log_action_probs", "task_loss_prediction"):
        reference = getattr(expected, name)
        assert not bool(reference[~gaze.chosen].any())
        torch.testing.assert_close(getattr(other, name), reference, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(getattr(longer, name)[:, :4, : reference.shape[2]], reference, atol=1e-5, rtol=1e-5)


def test_a_batch_scores_like_its_clips() -> None:
    model, video = small_model(), random_video(3, 3)
    gaze = model.generate(video, torch.tensor([[0.2], [0.9], [0.5]]))
    with torch.no_grad():
        together = model.score(video, gaze, 1.0).log_action_probs
        for i in range(3):
            alone = model.score(video[i : i + 1], gaze[i : i + 1], 1.0).log_action_probs
            torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-5)


def test_published_scores_count_positions_and_those_as_decoded_do_not() -> None:
    model, video = small_model(), random_video(1, 3)
    gaze = model.generate(video, 0.6)
    with torch.no_grad():
        published, decoded = (model.score(video, gaze, as_decoded=flag).log_action_probs for flag in (False, True))
    torch.testing.assert_close(published[:, 0, :4], decoded[:, 0, :4])  # the first group is the same either way
    assert not torch.allclose(published, decoded, atol=1e-2)


def test_gradients_reach_every_weight_that_matters() -> None:
    model, video = small_model().train(), random_video(2, 2)
    gaze = model.generate(video, 0.5)
    scores = model.score(video, gaze, 1.0)
    (scores.log_action_probs.sum() + scores.task_loss_prediction.sum()).backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert [name for name, grad in grads.items() if grad is None or not bool(grad.any())] == []


def test_an_empty_gaze_scores_nothing() -> None:
    model, video = small_model(), random_video(2, 2)
    for temperature in (None, 1.0):
        assert model.score(video, model.generate(video, 0.0), temperature).log_action_probs.shape == (2, 2, 0)


def test_what_cannot_be_scored_is_refused() -> None:
    model, video = small_model(max_num_frames=2), random_video(1, 3)
    gaze = model.generate(video, 0.5)
    with pytest.raises(ValueError, match="score takes at most 2 frames, got 3"):
        model.score(video, gaze)
    with pytest.raises(ValueError, match="agree on clips and frames"):
        model.score(video[:, :2], gaze)
    with pytest.raises(ValueError, match="on another grid"):
        model.score(video, small_model(scales=(16, 64)).generate(video, 0.5))
