"""Attention with memory: the dense ViT where everything is looked at, or nothing moves; streams equal clips."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from autogaze import Gaze, PatchGrid
from autogaze.vit import GazedViT, ViTStream

pytest.importorskip("timm")
pytest.importorskip("transformers")

from tests.vit.vit_models import CASES, Case  # noqa: E402

FAMILIES = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.family}: {case.name}")
CLIPS, FRAMES = 2, 4


def _grid(patch: int) -> PatchGrid:
    return PatchGrid((patch, 2 * patch, 4 * patch), patch)


def _gaze(grid: PatchGrid, share: float = 0.3, first: bool = True, finest: bool = True) -> Gaze:
    """Random patches; the first frame in full."""
    mask = torch.rand(CLIPS, FRAMES, grid.patches_per_frame) < share
    if finest:
        mask[..., : grid.offsets[-1]] = False
    if first:
        mask[:, 0, grid.offsets[-1] :] = True
    mask[1, 2] = False
    return Gaze.from_patch_mask(mask, grid)


def _video(grid: PatchGrid) -> Tensor:
    return torch.randn(CLIPS, FRAMES, 3, grid.height_px, grid.width_px)


@FAMILIES
@torch.no_grad()
def test_with_every_patch_it_is_the_dense_model(case: Case) -> None:
    model = case.build().eval()
    gazed = GazedViT(model, "memory")
    grid = _grid(gazed.patch_size)
    video = _video(grid)
    gaze = _gaze(grid)
    everything = torch.zeros(CLIPS, FRAMES, grid.patches_per_frame, dtype=torch.bool)
    everything[..., grid.offsets[-1] :] = True
    whole = Gaze.from_patch_mask(everything, grid)
    dense = case.dense(model, video.flatten(0, 1))
    features = gazed(video, whole)
    assert (features.features.view_as(dense.patches) - dense.patches).abs().max() < 1e-4
    if dense.pooled is not None:
        assert (features.pool().flatten(0, 1) - dense.pooled).abs().max() < 1e-4
    first = gazed(video, gaze).dense()[:, 0].flatten(2).mT
    assert torch.allclose(first, dense.patches.unflatten(0, (CLIPS, FRAMES))[:, 0], atol=1e-4)


@FAMILIES
@torch.no_grad()
def test_where_nothing_moves_memory_is_the_dense_model(case: Case) -> None:
    model = case.build().eval()
    gazed = GazedViT(model, "memory")
    grid = _grid(gazed.patch_size)
    still = _video(grid)[:, :1].expand(-1, FRAMES, -1, -1, -1)
    dense = case.dense(model, still.flatten(0, 1))
    features = gazed(still, _gaze(grid))
    maps = features.dense().flatten(3).mT.flatten(0, 1)
    assert torch.allclose(maps, dense.patches, atol=1e-4)
    assert torch.allclose(features.prefix.flatten(0, 1), dense.prefix, atol=1e-4)
    if dense.pooled is not None:
        assert torch.allclose(features.pool().flatten(0, 1), dense.pooled, atol=1e-4)


@FAMILIES
@pytest.mark.parametrize("finest", [True, False])
@torch.no_grad()
def test_a_stream_equals_the_clip(case: Case, finest: bool) -> None:
    gazed = GazedViT(case.build().eval(), "memory")
    grid = _grid(gazed.patch_size)
    video, gaze = _video(grid), _gaze(grid, first=False, finest=finest)
    clip = gazed(video, gaze)
    stream, steps = ViTStream(gazed, CLIPS), []
    for part in (slice(0, 1), slice(1, 3), slice(3, 4)):
        steps.append(stream.step(video[:, part], Gaze(gaze.ids[:, part], gaze.chosen[:, part], grid)))
    assert torch.allclose(torch.cat([step.dense() for step in steps], 1), clip.dense(), atol=1e-5)
    assert torch.allclose(torch.cat([step.prefix for step in steps], 1), clip.prefix, atol=1e-5)
    assert torch.allclose(torch.cat([step.pool() for step in steps], 1), clip.pool(), atol=1e-5)


@FAMILIES
def test_memory_trains_and_clips_do_not_mix(case: Case) -> None:
    gazed = GazedViT(case.build().eval(), "memory")
    grid = _grid(gazed.patch_size)
    video, gaze = _video(grid), _gaze(grid, first=False, finest=False)
    together, alone = gazed(video, gaze), gazed(video[1:], gaze[1:])
    assert torch.allclose(together.dense()[1:], alone.dense(), atol=1e-5)
    static = gazed(video, gaze, capacity=gaze.ids.numel() + 3)
    assert torch.allclose(static.dense(), together.dense(), atol=1e-5)
    assert torch.allclose(static.pool(), together.pool(), atol=1e-5)
    together.pool().square().sum().backward()
    used = [weight.grad for name, weight in gazed.named_parameters() if "patch_embed" in name or "embeds.proj" in name]
    assert any(grad is not None and grad.isfinite().all() and grad.abs().sum() > 0 for grad in used)


@torch.no_grad()
def test_a_memory_does_not_grow() -> None:
    gazed = GazedViT(CASES[0].build().eval(), "memory")
    grid = _grid(8)
    stream, sizes = ViTStream(gazed), []
    for _ in range(6):
        mask = torch.rand(1, 1, grid.patches_per_frame) < 0.5
        stream.step(torch.randn(1, 1, 3, 32, 32), Gaze.from_patch_mask(mask, grid))
        assert stream.memory is not None
        sizes.append(sum(k.numel() + v.numel() for k, v in stream.memory.keys))
    assert sizes == [2 * 2 * grid.patches_per_frame * 32] * 6


@torch.no_grad()
def test_a_cell_that_was_never_seen_is_filled() -> None:
    grid = PatchGrid((8, 32), 8)
    ids = torch.tensor([[[1, 2], [6, 0]]])
    chosen = torch.tensor([[[True, True], [True, False]]])
    features = GazedViT(CASES[0].build().eval(), "memory")(torch.randn(1, 2, 3, 32, 32), Gaze(ids, chosen, grid))
    filled = (features.dense(fill=-7.0) == -7.0).all(2).flatten(2)
    assert (~filled)[0].nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [1, 5]]


@FAMILIES
@torch.no_grad()
def test_the_nearest_look_may_come_later_and_all_looks_are_dense(case: Case) -> None:
    model = case.build().eval()
    gazed = GazedViT(model, "nearest")
    grid = _grid(gazed.patch_size)
    video = _video(grid)
    mask = torch.zeros(CLIPS, FRAMES, grid.patches_per_frame, dtype=torch.bool)
    mask[:, [0, 3], grid.offsets[-1] :] = True
    features = gazed(video, Gaze.from_patch_mask(mask, grid))
    dense = case.dense(model, video.flatten(0, 1))
    patches, prefix = (x.unflatten(0, (CLIPS, FRAMES)) for x in (dense.patches, dense.prefix))
    maps = features.dense(follow=False).flatten(3).mT
    assert torch.allclose(maps, patches[:, [0, 0, 3, 3]], atol=1e-4)
    assert torch.allclose(features.prefix, prefix[:, [0, 0, 3, 3]], atol=1e-4)
    if dense.pooled is not None:
        pooled = dense.pooled.unflatten(0, (CLIPS, FRAMES))
        assert torch.allclose(features.pool(), pooled[:, [0, 0, 3, 3]], atol=1e-4)


@torch.no_grad()
def test_between_two_looks_a_map_is_read_from_both() -> None:
    """A picture that fades into another: the map between the looks is nearer to the dense one than either look's."""
    grid = PatchGrid((64,), 8)
    torch.manual_seed(0)
    first, last = torch.nn.functional.interpolate(torch.randn(2, 3, 8, 8), (64, 64), mode="bilinear").split(1)
    video = torch.stack([torch.lerp(first, last, t / 3) for t in range(4)], 1)
    mask = torch.zeros(1, 4, 64, dtype=torch.bool)
    mask[:, [0, 3]] = True
    gazed = GazedViT(CASES[0].build().eval(), "nearest")
    features = gazed(video, Gaze.from_patch_mask(mask, grid))
    dense = gazed(video, Gaze.from_patch_mask(torch.ones_like(mask), grid)).dense()
    assert features.sides is not None
    before, after = features.sides()
    assert before.away is not None and after.away is not None
    assert before.away[:, 0].tolist() == [0, 1, 2, 0] and after.away[:, 0].tolist() == [0, 2, 1, 0]
    both, nearest = (
        torch.cosine_similarity(features.dense(follow=follow), dense, dim=2)[0, 1:3].mean() for follow in (True, False)
    )
    assert both > nearest + 0.002
    torch.testing.assert_close(features.dense()[:, [0, 3]], features.dense(follow=False)[:, [0, 3]])


@torch.no_grad()
def test_kept_features_follow_what_moves() -> None:
    """The camera goes right by one cell a frame: what was seen in a cell is then found in the one left of it."""
    grid = PatchGrid((64,), 8)
    wide = torch.nn.functional.interpolate(torch.randn(1, 3, 16, 32), (64, 128), mode="bilinear")
    video = torch.stack([wide[..., 8 * t : 8 * t + 64] for t in range(2)], 1)
    mask = torch.zeros(1, 2, 64, dtype=torch.bool)
    mask[:, 0] = True
    gaze = Gaze.from_patch_mask(mask, grid)
    gazed = GazedViT(CASES[0].build().eval(), "memory")
    stream = ViTStream(gazed)
    for features in (
        gazed(video, gaze),
        [
            stream.step(video[:, t : t + 1], Gaze(gaze.ids[:, t : t + 1], gaze.chosen[:, t : t + 1], grid))
            for t in (0, 1)
        ],
    ):
        if isinstance(features, list):
            first, second = (step.dense()[0, 0] for step in features)
        else:
            first, second = features.dense()[0]
        assert torch.allclose(second[:, 1:-1, 1:-2], first[:, 1:-1, 2:-1], atol=1e-5)


def test_streams_need_memory_and_keep_their_grid() -> None:
    model = CASES[0].build().eval()
    with pytest.raises(ValueError, match=r'attention="memory", this GazedViT has .frame.'):
        ViTStream(GazedViT(model))
    stream = ViTStream(GazedViT(model, "memory"))
    gaze = Gaze.from_patch_mask(torch.ones(1, 1, 16, dtype=torch.bool), PatchGrid((32,), 8))
    stream.step(torch.randn(1, 1, 3, 32, 32), gaze)
    other = Gaze.from_patch_mask(torch.ones(1, 1, 17, dtype=torch.bool), PatchGrid((8, 32), 8))
    with pytest.raises(ValueError, match="this stream began on"):
        stream.step(torch.randn(1, 1, 3, 32, 32), other)
    with pytest.raises(ValueError, match="1 clips side by side, got a video of 2"):
        stream.step(torch.randn(2, 1, 3, 32, 32), gaze[torch.tensor([0, 0])])
