"""Rewards: better reconstruction pays, length costs its price, and the judge's passes do not depend on their size."""

from __future__ import annotations

import torch

from autogaze.core.gaze import Gaze
from autogaze.pretrain.judge import Judge
from autogaze.pretrain.reconstructor.network import Reconstructor, ReconstructorConfig
from autogaze.rl.reward import frame_rewards

TINY = ReconstructorConfig(scales=(32, 64), width=32, depth=1, heads=2, mlp_ratio=2, loss="l1")


def test_reward_is_minus_the_loss_minus_the_price_of_looking() -> None:
    loss, counts = torch.tensor([[0.5, 0.25]]), torch.tensor([[10, 0]])
    assert torch.equal(frame_rewards(loss, counts, 20), -loss)
    torch.testing.assert_close(frame_rewards(loss, counts, 20, length_price=0.1), torch.tensor([[-0.55, -0.25]]))


def test_the_judge_gives_the_same_losses_in_parts_and_at_once() -> None:
    reconstructor = Reconstructor(TINY)
    video = torch.rand(5, 3, 3, 64, 64) * 2 - 1
    gaze = Gaze.from_patch_mask(torch.rand(5, 3, reconstructor.grid.patches_per_frame) < 0.2, reconstructor.grid)
    whole = Judge(reconstructor, clips=8).losses(video, gaze)
    torch.testing.assert_close(Judge(reconstructor, clips=2).losses(video, gaze), whole)


def test_looking_at_more_is_rewarded() -> None:
    reconstructor = Reconstructor(TINY)
    video = torch.rand(2, 3, 3, 64, 64) * 2 - 1
    mask = torch.zeros(2, 3, reconstructor.grid.patches_per_frame, dtype=torch.bool)
    judge, grid = Judge(reconstructor), reconstructor.grid
    some = judge.losses(video, Gaze.from_patch_mask(mask.index_fill(2, torch.arange(4), True), grid))
    every = judge.losses(video, Gaze.from_patch_mask(~mask, grid))
    assert bool((every < some).all())
