"""Greedy search: exact equals brute force, recorded losses are true, fast stays near exact and away from random."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from autogaze.pretrain.labels.greedy import GreedyGaze, GreedySettings, apart, greedy_gaze
from autogaze.pretrain.reconstructor.gaze_mix import top_of
from autogaze.pretrain.reconstructor.network import Reconstructor, ReconstructorConfig

CONFIG = ReconstructorConfig(scales=(16, 32, 64), width=16, depth=1, heads=1, mlp_ratio=1)
BUDGETS = torch.tensor([[5, 3, 4], [2, 6, 0]])


@pytest.fixture(scope="module")
def model() -> Reconstructor:
    """Paste-and-upsample with a little of a network on top."""
    torch.manual_seed(2)
    model = Reconstructor(CONFIG)
    for head in (model.residual, model.mixture):
        torch.nn.init.normal_(head.weight, std=0.02)
    return model.eval()


@pytest.fixture(scope="module")
def video() -> torch.Tensor:
    """A textured square that moves over a smooth ground."""
    torch.manual_seed(3)
    video = F.interpolate(torch.randn(2, 3, 4, 4), 64, mode="bilinear")[:, None].repeat(1, 3, 1, 1, 1)
    for t in range(3):
        video[:, t, :, 20:36, 10 + 8 * t : 26 + 8 * t] = torch.randn(2, 3, 16, 16)
    return video


def last_loss(found: GreedyGaze) -> torch.Tensor:
    return found.loss.gather(2, found.gaze.counts[..., None])[..., 0]


def brute_force(model: Reconstructor, video: torch.Tensor, budgets: list[int]) -> tuple[list[list[int]], list[float]]:
    """One clip, whole reconstructions for every patch of every pick."""
    mask = torch.zeros(1, len(budgets), CONFIG.grid.patches_per_frame, dtype=torch.bool)
    picks, losses = [], []
    for t, budget in enumerate(budgets):
        picks.append([])
        for _ in range(budget):
            trials = {}
            for patch in range(mask.shape[2]):
                if not mask[0, t, patch]:
                    trial = mask.clone()
                    trial[0, t, patch] = True
                    trials[patch] = model.reconstruct(video, trial).loss[0, t].item()
            best = min(trials, key=trials.get)
            mask[0, t, best] = True
            picks[-1].append(best)
            losses.append(trials[best])
    return picks, losses


def test_exact_search_equals_brute_force(model: Reconstructor, video: torch.Tensor) -> None:
    found = greedy_gaze(model, video, BUDGETS, GreedySettings(mode="exact"))
    for b in range(2):
        with torch.no_grad():
            picks, losses = brute_force(model, video[b : b + 1], BUDGETS[b].tolist())
        assert [found.gaze.ids[b, t, :n].tolist() for t, n in enumerate(BUDGETS[b].tolist())] == picks
        recorded = torch.cat([found.loss[b, t, 1 : n + 1] for t, n in enumerate(BUDGETS[b].tolist())])
        torch.testing.assert_close(recorded, torch.tensor(losses), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "settings", [GreedySettings(), GreedySettings(candidates=4, picks=3), GreedySettings(mode="exact")]
)
def test_recorded_losses_are_those_of_the_reconstructor(
    model: Reconstructor, video: torch.Tensor, settings: GreedySettings
) -> None:
    found = greedy_gaze(model, video, BUDGETS, settings)
    assert torch.equal(found.gaze.counts, BUDGETS)
    with torch.no_grad():
        torch.testing.assert_close(last_loss(found), model(video, found.gaze).loss, atol=1e-5, rtol=1e-5)
        half = replace(found.gaze, chosen=found.gaze.chosen & (torch.arange(6) < 2))
        torch.testing.assert_close(found.loss[:, 0, 2], model(video, half).loss[:, 0], atol=1e-5, rtol=1e-5)
    known = found.loss.isfinite().sum(-1)
    assert torch.equal(known, BUDGETS + 1)


@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_no_patch_is_taken_twice_in_a_frame(model: Reconstructor, video: torch.Tensor, mode: str) -> None:
    budgets = torch.full((2, 3), 21)
    found = greedy_gaze(model, video, budgets, GreedySettings(mode=mode, share=4))
    assert torch.equal(found.gaze.ids.sort(-1).values, torch.arange(21).expand(2, 3, 21))


def test_fast_is_close_to_exact_and_far_from_random(model: Reconstructor, video: torch.Tensor) -> None:
    budgets = torch.full((2, 3), 5)
    fast, exact = (
        last_loss(greedy_gaze(model, video, budgets, GreedySettings(mode=mode))).mean() for mode in ("fast", "exact")
    )
    blind = model.reconstruct(video, top_of(torch.rand(2, 3, 21), budgets)).loss.mean()
    assert fast - exact < 0.2 * (blind - exact)
    tried = last_loss(greedy_gaze(model, video, budgets, GreedySettings(candidates=6))).mean()
    assert tried <= 1.05 * exact


def test_clips_are_searched_as_if_alone(model: Reconstructor, video: torch.Tensor) -> None:
    together = greedy_gaze(model, video, BUDGETS)
    alone = greedy_gaze(model, video[1:], BUDGETS[1:])
    torch.testing.assert_close(together.loss[1:, :, :7], alone.loss, equal_nan=True)
    assert torch.equal(together.gaze.ids[1:, :, :6], alone.gaze.ids)


def test_reconstructing_in_smaller_batches_changes_nothing(model: Reconstructor, video: torch.Tensor) -> None:
    whole, parts = (greedy_gaze(model, video, BUDGETS, GreedySettings(mode="exact", at_once=n)) for n in (512, 6))
    assert torch.equal(whole.gaze.ids, parts.gaze.ids)


def test_patches_taken_together_lie_apart_and_are_worth_it() -> None:
    overlap = torch.eye(5, dtype=torch.bool)
    overlap[0, 1] = overlap[1, 0] = True
    ids, gains = torch.tensor([[0, 1, 2, 3, 4]]), torch.tensor([[1.0, 0.9, 0.8, 0.7, 0.2]])
    usable = torch.ones(1, 5, dtype=torch.bool)
    picks, valid = apart(overlap, ids, gains, usable, torch.tensor([4]), 0.5)
    assert picks[valid].tolist() == [0, 2, 3]
    picks, valid = apart(overlap, ids, gains, usable, torch.tensor([2]), 0.5)
    assert picks[valid].tolist() == [0, 2]


def test_budgets_that_do_not_fit_are_refused(model: Reconstructor, video: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="0 to 21"):
        greedy_gaze(model, video, torch.full((2, 3), 22))
    with pytest.raises(ValueError, match="mode must be"):
        GreedySettings(mode="slow")


@pytest.mark.gpu
def test_a_search_on_the_gpu_reaches_the_loss_of_the_cpu(model: Reconstructor, video: torch.Tensor) -> None:
    on_cpu = last_loss(greedy_gaze(model, video, BUDGETS))
    gpu = Reconstructor(CONFIG).eval()
    gpu.load_state_dict(model.state_dict())
    with torch.autocast("cuda", torch.bfloat16):
        on_gpu = last_loss(greedy_gaze(gpu.cuda(), video.cuda(), BUDGETS.cuda())).cpu()
    torch.testing.assert_close(on_gpu.mean(), on_cpu.mean(), atol=0.01, rtol=0.03)
