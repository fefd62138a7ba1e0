"""Choosing one group: no repeats, the stop rule, sampling that follows the probabilities it should."""

from __future__ import annotations

import pytest
import torch

from autogaze.core.grid import PatchGrid
from autogaze.decoding.choice import choose_group, join_slots, keep_group
from autogaze.network.residual import FrameResidual, ResidualMap
from benchmarks.published_loop import generate_published
from tests.gaze_models import random_video, small_model, typical_loss


def none_taken(batch: int, ids: int) -> torch.Tensor:
    return torch.zeros(batch, ids, dtype=torch.bool)


def chosen(
    logits: torch.Tensor,
    taken: torch.Tensor,
    temperature: float | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Ids (B, K) that are taken; the heads' losses are passed on."""
    task_loss = torch.rand(logits.shape[:2])
    ids, losses = choose_group(logits, task_loss, taken, temperature, generator)
    assert losses is task_loss
    return ids


def test_every_head_takes_its_best_id_that_is_left() -> None:
    # eos, the last entry, is best everywhere and never taken; heads 0 and 1 agree, so head 1 gets its second choice
    logits = torch.tensor([[[3.0, 2.0, 1.0, 9.0], [3.0, 2.0, 1.0, 9.0], [3.0, 2.0, 1.0, 9.0]]])
    taken = none_taken(1, 3)
    assert chosen(logits, taken).tolist() == [[0, 1, 2]] and taken.all()


def test_ids_of_earlier_groups_are_not_taken_again() -> None:
    taken = torch.tensor([[True, False, False, True]])
    assert chosen(torch.tensor([[[9.0, 1.0, 2.0, 8.0, 9.0]]]), taken).tolist() == [[2]]
    assert taken.tolist() == [[True, False, True, True]]


def test_sampling_follows_the_softmax_of_what_is_left() -> None:
    logits = torch.log(torch.tensor([0.5, 0.3, 0.2, 5.0])).expand(20000, 2, 4)
    generator = torch.Generator().manual_seed(0)
    ids = chosen(logits, none_taken(20000, 3), 1.0, generator)
    shares = torch.bincount(ids[:, 0], minlength=3) / len(ids)
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.3, 0.2]), atol=0.015, rtol=0)
    after_0 = ids[ids[:, 0] == 0, 1]
    torch.testing.assert_close(
        torch.bincount(after_0, minlength=3) / len(after_0), torch.tensor([0.0, 0.6, 0.4]), atol=0.02, rtol=0
    )


def test_temperature_sharpens_and_a_seed_repeats() -> None:
    logits = torch.randn(500, 3, 8)
    best = chosen(logits, none_taken(500, 7))
    cold = chosen(logits, none_taken(500, 7), 0.01, torch.Generator().manual_seed(1))
    hot = [chosen(logits, none_taken(500, 7), 5.0, torch.Generator().manual_seed(1)) for _ in range(2)]
    assert (cold == best).float().mean() > 0.95 > (hot[0] == best).float().mean() + 0.3
    assert torch.equal(*hot)


def test_a_pick_takes_its_error_away_from_what_is_left_and_from_what_others_gain() -> None:
    rule = ResidualMap(PatchGrid((16, 32)), 2, 16)  # a patch of 4 places, then one for each
    errors = torch.tensor([[[0.8, 0.6, 0.0], [0.4, 0.3, 0.0], [0.4, 0.3, 0.0], [0.4, 0.4, 0.0]]])
    error = FrameResidual(rule, errors, torch.zeros(1, 4, dtype=torch.uint8))
    ids, losses = choose_group(torch.zeros(1, 4, 6), torch.zeros(1, 4), none_taken(1, 5), error=error)
    # the first place gains 0.2 of the mean of 0.5; then the coarse patch 0.05, less than any place
    assert ids.tolist() == [[1, 2, 3, 4]]
    torch.testing.assert_close(losses, torch.tensor([[0.5, 0.3, 0.2, 0.1]]))
    assert error.level.tolist() == [[2, 2, 2, 2]] and error.predicted_loss() == 0


def test_the_published_loop_chooses_the_same_ids_with_residual_map() -> None:
    model, video = small_model(residual_map=True), random_video(3, 5)
    model.decoding = "reference"
    for ratio, asked in ((0.5, None), (0.9, typical_loss(model, video, 0.4))):
        ours, theirs = model.generate(video, ratio, asked), generate_published(model, video, ratio, asked)
        assert torch.equal(ours.chosen, theirs.chosen)
        assert torch.equal(ours.ids * ours.chosen, theirs.ids * theirs.chosen)


def test_an_id_that_is_not_needed_is_padding_and_ends_the_frame() -> None:
    loss = torch.tensor([[0.1, 0.9, 0.2, 0.8]])
    kept, done = keep_group(loss, torch.tensor([9]), torch.tensor([0.5]), first=False)
    assert kept.tolist() == [[False, True, False, True]] and done.tolist() == [True]


def test_the_first_id_of_a_frame_is_never_padding() -> None:
    low, requirement = torch.zeros(1, 3), torch.tensor([0.5])
    kept, done = keep_group(low, torch.tensor([9]), requirement, first=True)
    assert kept.tolist() == [[True, False, False]] and done.tolist() == [True]
    one = torch.tensor([[0.0, 0.9, 0.9]])
    assert keep_group(one, torch.tensor([9]), requirement, first=True)[1].tolist() == [False]


def test_a_loss_that_equals_the_requirement_meets_it() -> None:
    kept, _ = keep_group(torch.tensor([[0.9, 0.5]]), torch.tensor([9]), torch.tensor([0.5]), first=False)
    assert kept.tolist() == [[True, False]]


@pytest.mark.parametrize(("room", "within", "done"), [(1, 1, True), (3, 3, True), (4, 3, False), (0, 0, True)])
def test_a_group_is_cut_at_the_budget(room: int, within: int, done: bool) -> None:
    kept, ended = keep_group(torch.ones(1, 3), torch.tensor([room]), None, first=False)
    assert kept.sum() == within and ended.tolist() == [done]


def test_a_low_loss_beyond_the_budget_counts_for_nothing() -> None:
    kept, ended = keep_group(torch.tensor([[0.9, 0.0]]), torch.tensor([1]), torch.tensor([0.5]), first=False)
    assert kept.tolist() == [[True, False]] and ended.tolist() == [True]


def test_columns_are_padded_with_what_says_not_decoded() -> None:
    columns = [
        (torch.tensor([[5]]), torch.tensor([[True]]), torch.tensor([[0.5]])),
        (torch.tensor([[1, 2]]), torch.tensor([[True, True]]), torch.tensor([[0.1, 0.2]])),
    ]
    ids, chosen, loss = join_slots(columns, torch.cat)
    assert ids.tolist() == [[5, 0], [1, 2]] and chosen.tolist() == [[True, False], [True, True]]
    assert loss[0, 1].isnan() and not loss[1].isnan().any()
