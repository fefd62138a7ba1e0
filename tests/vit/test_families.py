"""Every family: with every patch of the finest scale chosen, a gazed ViT is the dense ViT."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autogaze import Gaze, PatchGrid
from autogaze.vit import GazedViT

pytest.importorskip("timm")
pytest.importorskip("transformers")

from tests.vit.vit_models import CASES, Case  # noqa: E402

EMBEDDINGS = ("patch_embed", "embeds.proj")
FAMILIES = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.family}: {case.name}")


def _model(case: Case) -> nn.Module:
    """A model whose every weight matters: the initial zeros of biases and tokens would hide mistakes."""
    model = case.build().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return model


def _whole(grid: PatchGrid, clips: int, frames: int) -> Gaze:
    mask = torch.zeros(clips, frames, grid.patches_per_frame, dtype=torch.bool)
    mask[..., grid.offsets[-1] :] = True
    return Gaze.from_patch_mask(mask, grid)


def _grid(patch: int) -> PatchGrid:
    return PatchGrid((patch, 2 * patch, 4 * patch), patch)


@FAMILIES
@torch.no_grad()
def test_all_patches_of_the_finest_scale_equal_the_dense_model(case: Case) -> None:
    model = _model(case)
    gazed = GazedViT(model)
    grid = _grid(gazed.patch_size)
    video = torch.randn(2, 3, 3, grid.height_px, grid.width_px)
    dense = case.dense(model, video.flatten(0, 1))
    gaze = _whole(grid, 2, 3)
    for capacity in (None, gaze.ids.numel()):  # runs known to be regular, and runs of any length
        features = gazed(video, gaze, capacity)
        assert (features.features.view_as(dense.patches) - dense.patches).abs().max() < 1e-4
        assert features.prefix.flatten(0, 1).shape == dense.prefix.shape
        assert torch.allclose(features.prefix.flatten(0, 1), dense.prefix, atol=1e-4)
        if dense.pooled is not None:
            assert (features.pool().flatten(0, 1) - dense.pooled).abs().max() < 1e-4


@FAMILIES
@pytest.mark.parametrize("attention", ["frame", "block_causal", "joint"])
def test_some_patches_do_not_depend_on_the_rest_of_the_batch_and_train(case: Case, attention: str) -> None:
    gazed = GazedViT(_model(case), attention)
    grid = _grid(gazed.patch_size)
    mask = torch.rand(2, 3, grid.patches_per_frame) < 0.3
    mask[1, 1] = False  # an empty frame is legal
    video, gaze = torch.randn(2, 3, 3, grid.height_px, grid.width_px), Gaze.from_patch_mask(mask, grid)
    together, alone = gazed(video, gaze), gazed(video[1:], gaze[1:])
    count = len(alone.features)
    assert count == mask[1].sum() and len(together.features) == mask.sum()
    assert torch.allclose(together.features[-count:], alone.features, atol=1e-5)
    assert torch.allclose(together.pool()[1:], alone.pool(), atol=1e-5)
    static = gazed(video, gaze, capacity=gaze.ids.numel() + 3)
    assert torch.allclose(static.features[: len(together.features)], together.features, atol=1e-5)
    assert torch.allclose(static.pool(), together.pool(), atol=1e-5)
    assert torch.equal(static.dense(), static.dense()) and torch.allclose(static.dense(), together.dense(), atol=1e-5)
    together.pool().square().sum().backward()
    embedding = next(weight for name, weight in gazed.named_parameters() if any(part in name for part in EMBEDDINGS))
    assert embedding.grad is not None and embedding.grad.isfinite().all() and embedding.grad.abs().sum() > 0
