"""Scores of patches at their own places."""

from __future__ import annotations

import torch

from autogaze import AutoGaze, PatchGrid
from autogaze.salience import Salience
from tests.gaze_models import random_video, small_model


def test_a_patch_is_scored_by_the_mean_of_its_places() -> None:
    grid, tokens = PatchGrid(), torch.randn(2, 196, 24, generator=torch.Generator().manual_seed(0))
    salience = Salience(grid, 14, 24)
    ratings = salience.rating(torch.nn.functional.silu(salience.hidden(tokens)))
    scores = salience(tokens)
    assert scores.shape == (2, 265) and scores.dtype == torch.float32
    torch.testing.assert_close(scores[:, 69:], ratings[..., 3])
    of_112 = ratings[..., 2].unflatten(1, (7, 2, 7, 2)).mean((2, 4)).flatten(1)
    torch.testing.assert_close(scores[:, 20:69], of_112)
    quarters = ratings[..., 0].unflatten(1, (2, 7, 2, 7)).mean((2, 4)).flatten(1)
    torch.testing.assert_close(scores[:, :4], quarters)


def test_it_moves_every_choice_of_a_frame() -> None:
    """A place that is rated above everything else is what every frame looks at first."""
    model, video = small_model(salience=True), random_video(2, 3)
    assert model.salience is not None
    with torch.no_grad():
        model.salience.rating.weight.zero_()
        model.salience.rating.bias.copy_(torch.tensor([0.0, 0.0, 1e4]))
    gaze = model.generate(video, 0.5)  # 10 of 21 ids; the finest scale has 16, from 5 on
    assert bool((gaze.ids[gaze.chosen] >= 5).all())


def test_scores_are_those_of_the_policy() -> None:
    """The best id under the scores is the id that was chosen."""
    from autogaze.decoding.scoring import score_all

    model, video = small_model(salience=True, num_multi_token_pred=1), random_video(1, 4)
    gaze = model.generate(video, 0.4)
    logits, _ = score_all(model, video, gaze, as_decoded=True)
    first = logits[:, :, 0, :-1].argmax(-1)
    assert torch.equal(first, gaze.ids[:, :, 0])


def test_gradients_reach_every_weight() -> None:
    model, video = small_model(salience=True), random_video(1, 3)
    gaze = model.generate(video, 0.5)
    model.score(video, gaze, temperature=1.0).log_action_probs.sum().backward()
    assert isinstance(model, AutoGaze) and model.salience is not None
    assert all(weight.grad is not None and weight.grad.any() for weight in model.salience.parameters())
