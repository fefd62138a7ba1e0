"""Imitation on the model's own states: the teacher goes on from what the model has seen, and the model follows it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autogaze.core.gaze import Gaze
from autogaze.model import AutoGaze
from autogaze.pretrain.judge import Judge
from autogaze.pretrain.on_policy import OnPolicyModule, imitation
from autogaze.pretrain.reconstructor.network import Reconstructor
from autogaze.pretrain.reconstructor.paste import paste
from autogaze.selectors.difference import DifferenceSelector
from autogaze.selectors.ranking import NEVER
from autogaze.training.recipes import PretrainRecipe
from tests.rl.test_env import TINY, spotted_clip
from tests.rl.test_module import CONFIG, assert_it_learns, batch

RECIPE = PretrainRecipe(
    max_steps=30,
    batch_clips=8,
    learning_rate=5e-3,
    warmup_steps=3,
    on_policy=True,
    min_gazing_ratio=0.1,
    max_gazing_ratio=0.1,
    weight_decay=0.0,
    validate_every=15,
    checkpoint_every=15,
    accelerator="cpu",
)


def make_module() -> OnPolicyModule:
    torch.manual_seed(0)
    return OnPolicyModule(AutoGaze(CONFIG), Judge(Reconstructor(TINY)), RECIPE)


def test_what_the_teacher_would_take_is_worth_the_most_wherever_it_chose_itself() -> None:
    teacher = DifferenceSelector(CONFIG.grid)
    video = torch.stack([spotted_clip(seed, frames=3) for seed in range(2)]) + 0.01 * torch.randn(2, 3, 3, 64, 64)
    gaze = teacher.choose(video, torch.tensor([[5, 1, 3], [1, 2, 4]]))
    gains = teacher.gains(video, gaze, group=2)
    assert gains.shape == (*gaze.ids.shape, CONFIG.grid.patches_per_frame)
    assert torch.equal(gains.argmax(-1)[gaze.chosen], gaze.ids[gaze.chosen])
    assert (gains[0, 1, 2:] == NEVER).all(), "nothing was chosen in that group"
    taken = gains.gather(-1, gaze.ids.roll(1, -1)[..., None])[0, 0, 1:]
    assert (taken == NEVER).all(), "what is taken cannot be taken again"


def test_gains_are_what_the_residual_map_falls_by() -> None:
    """Against pasting for real: the model looked somewhere, and each patch in turn is added to its next group."""
    grid, teacher = CONFIG.grid, DifferenceSelector(CONFIG.grid)
    video = torch.rand(1, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[[7, 2, 11, 0], [3, 9, 1, 0]]])
    gaze = Gaze(ids, torch.tensor([[[True, True, True, False]] * 2]), grid)
    gains = teacher.gains(video, gaze, group=2)

    def error(mask: torch.Tensor) -> torch.Tensor:
        canvas = paste(video, Gaze.from_patch_mask(mask, grid))[:, 1]
        return teacher.lattice.pool((video[:, 1] - canvas).abs().mean(1)).sum()

    mask = gaze.patch_mask()
    mask[0, 1] = False
    mask[0, 1, [3, 9]] = True  # frame 1 up to its second group
    before = error(mask)
    for patch in range(grid.patches_per_frame):
        with_it = mask.clone()
        with_it[0, 1, patch] = True
        expected = before - error(with_it) if not mask[0, 1, patch] else torch.tensor(NEVER)
        torch.testing.assert_close(gains[0, 1, 2, patch], expected, atol=1e-4, rtol=1e-4)


def test_the_model_is_corrected_where_it_went_itself() -> None:
    module = make_module()
    video = batch(0, 8).video
    gaze, gains = module.correct(video, torch.Generator().manual_seed(3))
    own = module.model.generate(video, gazing_ratio=0.1)
    assert torch.equal(gaze.ids, own.ids) and torch.equal(gaze.chosen, own.chosen)
    assert (gains[gaze.chosen].amax(-1) > NEVER).all()


def test_imitation_prefers_what_is_worth_more_and_takes_what_is_worth_as_much() -> None:
    chosen, gains = torch.tensor([True]), torch.tensor([[1.0, 0.99, 0.2, NEVER]])
    empty = imitation(torch.zeros(1, 4), torch.full((1, 4), NEVER), torch.tensor([False]), 0.1)
    assert empty.isfinite().all()
    best, equal, bad = (torch.eye(4)[k : k + 1] * 9 for k in range(3))
    hard = [float(imitation(logits, gains, chosen, 0.0)) for logits in (best, equal, bad)]
    soft = [float(imitation(logits, gains, chosen, 0.1)) for logits in (best, equal, bad)]
    assert hard[0] < 0.01 and hard[1] > 8 and hard[2] > 8
    assert abs(soft[0] - soft[1]) < 1 and soft[2] > soft[1] + 3
    never = torch.tensor([[0.0, 0.0, 0.0, 50.0]], requires_grad=True)
    imitation(never, gains, chosen, 0.1).sum().backward()
    assert never.grad is not None and float(never.grad[0, 3]) == 0.0 and never.grad.isfinite().all()


def test_learns_to_look_at_the_only_thing_to_see(tmp_path: Path) -> None:
    assert_it_learns(make_module(), tmp_path)


def test_budgets_must_be_a_range() -> None:
    with pytest.raises(ValueError, match="0 < min_gazing_ratio <= max_gazing_ratio <= 1, got 0.5 and 0.4"):
        replace(RECIPE, min_gazing_ratio=0.5, max_gazing_ratio=0.4)


def test_who_scores_by_residual_map_is_corrected_at_every_id() -> None:
    """Its own picks of a group are known to it, so that what was best is told after each of them."""
    recipe, video = replace(RECIPE, min_gazing_ratio=0.3, max_gazing_ratio=0.3), batch(0, 8).video
    module = OnPolicyModule(AutoGaze(replace(CONFIG, residual_map=True)), Judge(Reconstructor(TINY)), recipe)
    assert make_module().known_slots == CONFIG.num_multi_token_pred
    gaze, gains = module.correct(video, torch.Generator().manual_seed(3))
    assert gaze.ids.shape[-1] > 2 and torch.equal(gains, module.teacher.gains(video, gaze, 1))
    before = gaze.ids[:, :, :-1, None]  # of each id the one before it, which is taken by then
    assert (gains[:, :, 1:].gather(-1, before)[gaze.chosen[:, :, 1:]] == NEVER).all()
