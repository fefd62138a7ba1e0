"""Greedy search on features: exhaustive equals brute force, recorded distances are true, few candidates come near."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer

from autogaze.core.gaze import Gaze
from autogaze.core.grid import PatchGrid
from autogaze.pretrain.distance import FeatureDistance, PixelDistance, WeightedDistance
from autogaze.pretrain.labels.feature_greedy import FeatureSearch, greedy_features
from autogaze.pretrain.reconstructor.paste import paste
from autogaze.selectors.fixed import RandomSelector
from autogaze.vit.load import LoadedViT

GRID = PatchGrid((16, 32, 64))
BUDGETS = torch.tensor([[4, 3], [2, 0]])


@pytest.fixture(scope="module")
def distance() -> FeatureDistance:
    torch.manual_seed(5)
    model = VisionTransformer(img_size=64, patch_size=16, embed_dim=32, depth=2, num_heads=2, num_classes=0)
    vit = LoadedViT("tiny", model.eval().requires_grad_(False), (0.5,) * 3, (0.5,) * 3, "timm")
    return FeatureDistance(vit, patch=1.0, pooled=0.3)


@pytest.fixture(scope="module")
def video() -> torch.Tensor:
    """A textured square that moves over a smooth ground."""
    torch.manual_seed(3)
    video = F.interpolate(torch.randn(2, 3, 4, 4), 64, mode="bilinear")[:, None].repeat(1, 2, 1, 1, 1)
    for t in range(2):
        video[:, t, :, 20:36, 10 + 8 * t : 26 + 8 * t] = torch.randn(2, 3, 16, 16)
    return video.clamp(-1, 1)


def distance_of(distance: FeatureDistance, video: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(B, T) of the pasted picture of a mask (B, T, P)."""
    with torch.no_grad():
        pasted = paste(video, Gaze.from_patch_mask(mask, GRID)).flatten(0, 1)
        return distance(pasted, distance.target(video.flatten(0, 1))).view(video.shape[:2])


def brute_force(distance: FeatureDistance, video: torch.Tensor, budgets: list[int]) -> list[list[int]]:
    """One clip (1, T, 3, H, W): every patch of every pick, the whole clip pasted anew."""
    mask = torch.zeros(1, len(budgets), GRID.patches_per_frame, dtype=torch.bool)
    picks: list[list[int]] = []
    for t, budget in enumerate(budgets):
        picks.append([])
        for _ in range(budget):
            trials = {}
            for patch in (~mask[0, t]).nonzero()[:, 0].tolist():
                trial = mask.clone()
                trial[0, t, patch] = True
                trials[patch] = distance_of(distance, video, trial)[0, t].item()
            best = min(trials, key=trials.__getitem__)
            mask[0, t, best] = True
            picks[-1].append(best)
    return picks


def test_with_all_candidates_it_is_the_exhaustive_search(distance: FeatureDistance, video: torch.Tensor) -> None:
    found = greedy_features(distance, video, BUDGETS, GRID, FeatureSearch(candidates=GRID.patches_per_frame))
    for clip in range(2):
        wanted = brute_force(distance, video[clip : clip + 1], BUDGETS[clip].tolist())
        assert [ids[:n].tolist() for ids, n in zip(found.gaze.ids[clip], BUDGETS[clip], strict=True)] == wanted


@pytest.mark.parametrize("picks", [1, 3])
def test_recorded_distances_are_those_of_the_pasted_picture(
    distance: FeatureDistance, video: torch.Tensor, picks: int
) -> None:
    found = greedy_features(distance, video, BUDGETS, GRID, FeatureSearch(candidates=8, picks=picks, at_once=7))
    assert torch.equal(found.gaze.counts, BUDGETS)
    last = found.loss.gather(2, BUDGETS[..., None])[..., 0]
    torch.testing.assert_close(last, distance_of(distance, video, found.gaze.patch_mask()), atol=1e-5, rtol=1e-4)
    assert found.loss[..., 0].isfinite().all()
    assert found.loss[1, 1, 1:].isnan().all()
    if picks == 1:
        assert found.loss[0, 0].isfinite().all()


def test_few_candidates_come_near_the_exhaustive_search(distance: FeatureDistance, video: torch.Tensor) -> None:
    budgets = torch.full((2, 2), 5)
    exact = greedy_features(distance, video, budgets, GRID, FeatureSearch(candidates=GRID.patches_per_frame))
    quick = greedy_features(distance, video, budgets, GRID, FeatureSearch(candidates=6))
    drawn = RandomSelector(GRID)(video, 5.5 / GRID.patches_per_frame, torch.Generator().manual_seed(0))
    reached, wanted = quick.loss[..., -1].mean(), exact.loss[..., -1].mean()
    assert wanted <= reached + 1e-6 < wanted + 0.5 * (distance_of(distance, video, drawn.patch_mask()).mean() - wanted)


def test_a_weighted_sum_is_the_sum_of_its_terms(distance: FeatureDistance, video: torch.Tensor) -> None:
    frames, pictures, pixels = video[:, 0], video[:, 1], PixelDistance()
    total = WeightedDistance([(2.0, pixels), (0.5, distance)])
    wanted = 2 * pixels(pictures, pixels.target(frames)) + 0.5 * distance(pictures, distance.target(frames))
    torch.testing.assert_close(total(pictures, total.target(frames)), wanted)
    found = greedy_features(total, video, BUDGETS, GRID, FeatureSearch(candidates=4))
    assert torch.equal(found.gaze.counts, BUDGETS)


def test_the_distance_of_a_picture_from_itself_is_zero(distance: FeatureDistance, video: torch.Tensor) -> None:
    frames = video.flatten(0, 1)
    assert distance(frames, distance.target(frames)).abs().max() < 1e-5
    assert distance(frames.flip(-1), distance.target(frames)).min() > 1e-3


def test_bad_budgets_and_weights_are_refused(distance: FeatureDistance, video: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="budgets must be"):
        greedy_features(distance, video, BUDGETS[:1], GRID)
    with pytest.raises(ValueError, match="weights must be"):
        FeatureDistance(distance.vit, patch=0.0)
    with pytest.raises(ValueError, match="candidates"):
        FeatureSearch(candidates=0)
