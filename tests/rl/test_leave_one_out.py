"""Ids credited one by one: what is said of an id is what the judge says of the clip without it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from autogaze.core.gaze import Gaze
from autogaze.model import AutoGaze
from autogaze.pretrain.judge import Judge, PasteJudge, make_judge
from autogaze.pretrain.reconstructor.network import Reconstructor
from autogaze.rl.leave_one_out import leave_one_out
from autogaze.rl.module import GRPOModule
from autogaze.training.recipes import RLRecipe
from autogaze.training.trainer import fit
from tests.rl.test_env import TINY
from tests.rl.test_module import CONFIG, RECIPE, Spots


def l1() -> PasteJudge:
    judge = make_judge("l1", lambda: pytest.fail("no reconstructor"))
    assert isinstance(judge, PasteJudge)
    return judge


@pytest.fixture
def looked() -> tuple[torch.Tensor, Gaze]:
    """Rollouts of two clips in turns, each frame with another number of ids."""
    torch.manual_seed(0)
    model = AutoGaze(CONFIG)
    video = (torch.rand(2, 4, 3, model.grid.height_px, model.grid.width_px) * 2 - 1).repeat(2, 1, 1, 1, 1)
    ratios = torch.tensor([[0.1], [0.3]]).repeat(2, 1)
    return video, model.generate(video, gazing_ratio=ratios, temperature=1.0)


def without(gaze: Gaze, at: tuple[int, int, int]) -> Gaze:
    chosen = gaze.chosen.clone()
    chosen[at] = False
    return dataclasses.replace(gaze, chosen=chosen)


def test_an_id_is_worth_what_its_frame_loses_without_it(looked: tuple[torch.Tensor, Gaze]) -> None:
    video, gaze = looked
    slots = gaze.ids.shape[-1]
    credit = leave_one_out(l1(), video, gaze, video[:2], 4, slots, torch.Generator().manual_seed(0))
    assert credit.abs().max() > 0
    assert not credit[~gaze.chosen].any()
    for row, frame in [(0, 0), (1, 2), (3, 3)]:
        expected = torch.tensor([l1().losses(video, without(gaze, (row, frame, s)))[row, frame] for s in range(slots)])
        of_frame = gaze.chosen[row, frame]
        expected = (expected - expected[of_frame].median()).masked_fill(~of_frame, 0.0)
        torch.testing.assert_close(credit[row, frame], expected, atol=1e-6, rtol=1e-4)


def test_what_was_drawn_stands_for_the_rest_of_its_frame(looked: tuple[torch.Tensor, Gaze]) -> None:
    video, gaze = looked
    credit = leave_one_out(l1(), video, gaze, video, 2, 3, torch.Generator().manual_seed(1))
    assert ((credit != 0).any(-1).sum(1) == 2).all()  # frames of each clip
    assert ((credit != 0).sum(-1) <= 3).all()
    whole = leave_one_out(l1(), video, gaze, video, 4, gaze.ids.shape[-1], torch.Generator())
    draws = [leave_one_out(l1(), video, gaze, video, 4, 4, torch.Generator().manual_seed(k)) for k in range(60)]
    mean = torch.stack(draws).mean(0)
    agreement = torch.corrcoef(torch.stack([whole.flatten(), mean.flatten()]))[0, 1]
    assert agreement > 0.8


def test_training_by_single_ids_alone_learns_to_look(tmp_path: Path) -> None:
    torch.manual_seed(0)
    recipe = dataclasses.replace(RECIPE, judge="l1", leave_out_frames=2, group_weight=0.0, group_size=2)
    module = GRPOModule(AutoGaze(CONFIG), l1(), recipe)
    video = Spots(1).val_dataloader().__iter__().__next__().video
    before = float(l1().losses(video, module.model.generate(video, gazing_ratio=0.1)).mean())
    assert fit(module, Spots(30), recipe, tmp_path).best <= 0.6 * before


def test_a_reconstructor_cannot_leave_out(tmp_path: Path) -> None:
    recipe = RLRecipe(leave_out_frames=1)
    with pytest.raises(ValueError, match="leave_out_frames needs a judge of pasted pictures"):
        GRPOModule(AutoGaze(CONFIG), Judge(Reconstructor(TINY)), recipe)
