"""Tiles: cut and joined without loss, decoded as each would be alone, on frames of any size and length."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from autogaze import AutoGaze, Gaze, PatchGrid
from autogaze.core.tiling import Tiling, make_tiling
from autogaze.decoding import tiles as tiles_module
from autogaze.decoding.frames import FrameGazer
from tests.gaze_models import random_video, small_model, typical_loss

GRID = PatchGrid((16, 32, 64))  # 1 + 4 + 16 ids


def frames(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def picture(video: torch.Tensor, tiling: Tiling) -> torch.Tensor:
    """(B, T, patches of the frame): the mean of the pixels below every patch, found by its box."""
    grid = tiling.whole
    padded = torch.nn.functional.pad(video, (0, 200, 0, 200))
    return torch.stack([padded[..., y : y + h, x : x + w].mean((-3, -2, -1)) for x, y, w, h in boxes(grid)], dim=-1)


def boxes(grid: PatchGrid) -> list[tuple[int, int, int, int]]:
    """Left, top, width and height of patches that are not cut at the frame's edge, in pixels of the frame."""
    places = zip(*(part.tolist() for part in grid.locate(torch.arange(grid.patches_per_frame))), strict=True)
    sides = [grid.tile_px // (scale // grid.patch_size) for scale in grid.scales]
    return [(column * sides[k], row * sides[k], sides[k], sides[k]) for k, row, column in places]


@pytest.mark.parametrize(
    ("size", "scales"),
    [
        ((128, 128), (32, 64, 128)),
        ((100, 180), None),
        ((64, 64), None),
        ((20, 30), None),
        ((65, 64), None),
    ],
)
def test_what_is_known_of_tiles_lands_on_the_patch_that_it_is_of(size: tuple[int, int], scales: Any) -> None:
    """The mean colour of every patch, computed tile by tile and joined, is the mean colour at its box in the frame."""
    tiling = make_tiling(GRID, size, scales)
    video = torch.rand(2, 3, 3, *size)
    tiles = tiling.cut(video)
    assert tiles.shape == (2 * tiling.count, 3, 3, 64, 64)
    of_tiles = torch.cat(
        [torch.nn.functional.avg_pool2d(tiles.flatten(0, 1), 64 // side).mean(1).flatten(1) for side, _ in GRID.sides],
        dim=1,
    ).unflatten(0, tiles.shape[:2])
    joined = tiling.join(of_tiles)
    assert joined.shape == (2, 3, tiling.whole.patches_per_frame)
    torch.testing.assert_close(joined, picture(video, tiling), atol=1e-5, rtol=1e-5)


def test_the_published_grid_of_a_square_frame() -> None:
    whole = PatchGrid((56, 112, 196, 392), 14)
    tiling = make_tiling(PatchGrid(), (392, 392), [56, 112, 196, 392], 14)
    assert (tiling.whole, tiling.tile_px, tiling.rows, tiling.columns) == (whole, 196, 2, 2)
    cut = make_tiling(PatchGrid(), (378, 378), [54, 108, 189, 378], 14)
    assert cut.whole.sides == ((3, 3), (7, 7), (13, 13), (27, 27)) and cut.rows == 2
    # 400 px hold 28 patches of 14: two tiles, and the 8 pixels that no patch covers are left out, as published
    odd = make_tiling(PatchGrid(), (400, 400), [56, 112, 196, 400], 14)
    assert odd.rows == 2 and odd.cut(torch.zeros(1, 1, 3, 400, 400)).shape == (4, 1, 3, 196, 196)


def test_a_frame_of_any_aspect_gets_a_grid_of_its_own() -> None:
    tiling = make_tiling(PatchGrid(), (1080, 1920))
    assert (tiling.rows, tiling.columns) == (5, 9) and tiling.whole == PatchGrid(frame_size=(1080, 1920))
    bigger = make_tiling(PatchGrid(), (270, 480), [64, 128, 224, 448], 16)
    assert bigger.whole.sides == make_tiling(PatchGrid(), (270, 480)).whole.sides and bigger.whole.scales[-1] == 448


@pytest.mark.parametrize(
    ("size", "scales", "message"),
    [
        ((128, 128), [64, 128], "as many as the model's"),
        ((128, 128), [128, 64, 32], "ascend"),
        ((128, 128), [96, 112, 128], "more patches than 2 x 2 tiles"),
        ((100, 128), [32, 48, 128], "must have the proportions of the model's scales"),
    ],
)
def test_scales_that_do_not_fit_are_refused(size: tuple[int, int], scales: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_model().generate(torch.zeros(1, 1, 3, *size), 0.5, target_scales=scales)


@pytest.mark.parametrize("way", ["reference", "auto"])
def test_every_tile_is_gazed_at_as_if_it_were_a_clip(way: str) -> None:
    model, video = small_model(), random_video(2, 3, side=128)
    model.decoding = way
    gaze = model.generate(video, 0.3, target_scales=[32, 64, 128])
    corner = model.generate(video[..., 64:, :64], 0.3)
    for k, side in enumerate((1, 2, 4)):
        mine = gaze.mask(k).unflatten(-1, (2 * side, 2 * side))[..., side:, :side].flatten(-2)
        assert torch.equal(mine, corner.mask(k))
    assert gaze.grid == PatchGrid((32, 64, 128)) and gaze.counts.unique().tolist() == [4 * 6]
    ids = gaze.ids.where(gaze.chosen, 10**6)
    assert bool((ids[..., 1:] > ids[..., :-1]).all())


def test_target_patches_of_another_size_are_resized_to_the_model() -> None:
    model, video = small_model(), random_video(1, 2, side=96)
    gaze = model.generate(video, 0.3, target_scales=[24, 48, 96], target_patch_size=12)
    resized = torch.nn.functional.interpolate(video[0, :, :, :48, :48], size=(64, 64), mode="bicubic")[None]
    corner = model.generate(resized, 0.3)
    assert torch.equal(gaze.mask(-1).unflatten(-1, (8, 8))[..., :4, :4].flatten(-2), corner.mask(-1))


def test_pixels_beyond_the_frame_are_zeros_and_cannot_be_chosen() -> None:
    model, video = small_model(), random_video(1, 2, side=128)[..., :100, :90]
    padded = torch.zeros(1, 2, 3, 128, 128)
    padded[..., :100, :90] = video
    gaze, whole = model.generate(video, 1.0, target_patch_size=16), model.generate(padded, 0.5, target_patch_size=16)
    assert gaze.grid.sides == ((2, 2), (4, 3), (7, 6)) and bool(gaze.patch_mask().all())
    cut = model.generate(video, 0.5, target_patch_size=16)
    assert torch.equal(cut.mask(-1).unflatten(-1, (7, 6)), whole.mask(-1).unflatten(-1, (8, 8))[..., :7, :6])


def test_the_models_own_grid_needs_no_tiles() -> None:
    model, video = small_model(), random_video(1, 2)
    gaze = model.generate(video, 0.5, target_scales=[16, 32, 64], target_patch_size=16)
    assert torch.equal(gaze.ids, model.generate(video, 0.5).ids)  # in the order chosen


def test_requests_per_clip_and_frame_hold_in_every_tile() -> None:
    model, video = small_model(), random_video(2, 3, side=128)
    ratios = torch.tensor([[0.1, 0.5, 0.0], [1.0, 0.2, 0.3]])
    assert model.generate(video, ratios, target_patch_size=16).counts.tolist() == [[8, 40, 0], [84, 16, 24]]


def test_a_clip_with_its_own_requirement_gets_what_it_gets_alone() -> None:
    model, video = small_model(), random_video(2, 3, side=128)
    asked = typical_loss(model, video) + torch.tensor([0.0, 0.5])
    together = model.generate(video, None, asked, target_patch_size=16)
    for i in range(2):
        alone = model.generate(video[i : i + 1], None, float(asked[i]), target_patch_size=16)
        assert torch.equal(together[i : i + 1].patch_mask(), alone.patch_mask())


def test_how_many_tiles_are_decoded_at_once_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    model, video = small_model(), random_video(2, 3, side=128)
    expected = model.generate(video, 0.4, target_patch_size=16)
    for at_once in (1, 3, 8):
        monkeypatch.setattr(tiles_module, "TILES_AT_ONCE", {"cpu": at_once})
        assert torch.equal(model.generate(video, 0.4, target_patch_size=16).ids, expected.ids)


def in_blocks(gaze: Gaze, n: int) -> list[torch.Tensor]:
    """Masks (B, T, n * rows, n * columns) of a gaze, coarse to fine: every patch n x n times."""
    masks = [mask.unflatten(-1, sides) for mask, sides in zip(gaze.masks(), gaze.grid.sides, strict=True)]
    return [torch.kron(mask.long(), torch.ones(n, n, dtype=torch.long)).bool() for mask in masks]


@pytest.mark.parametrize("config", [{}, {"residual_map": True}])
@pytest.mark.parametrize("limits", [(0.1, None), (None, "typical")])
def test_a_stride_is_the_models_own_gaze_at_the_small_frame_in_blocks(config: dict[str, Any], limits: Any) -> None:
    model = small_model(scales=(32, 64, 112, 224), **config)
    video = random_video(2, 3, side=448)
    small = torch.nn.functional.avg_pool2d(video.flatten(0, 1), 2).unflatten(0, (2, 3))
    asked = (limits[0], None if limits[1] is None else typical_loss(model, small))
    gaze = model.generate(video, *asked, target_scales=(64, 128, 224, 448), gaze_stride=2)
    own = model.generate(small, *asked)
    assert gaze.grid == PatchGrid((64, 128, 224, 448)) and 0 < own.ratio.min() < 1
    for k, expected in enumerate(in_blocks(own, 2)):
        assert torch.equal(gaze.mask(k), expected.flatten(-2))
    assert torch.equal(gaze.ratio, own.ratio) and torch.equal(gaze.counts, 4 * own.counts)


def test_blocks_are_cut_at_the_sides_of_the_target() -> None:
    """SO400M/14 at 378 px: 27 x 27 patches of 28 x 28, one tile of 392 px whose last pixels are zeros."""
    model, video = small_model(scales=(32, 64, 112, 224)), random_video(1, 2, side=378)
    scales = (56, 112, 196, 378)
    tiling = make_tiling(model.grid, (378, 378), scales, 14, gaze_stride=2)
    assert (tiling.tile_px, tiling.count) == (392, 1) and tiling.cut(video).shape == (1, 2, 3, 196, 196)
    gaze = model.generate(video, 0.1, target_scales=scales, target_patch_size=14, gaze_stride=2)
    small = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(video, (0, 14, 0, 14)).flatten(0, 1), 2)[None]
    own = model.generate(small, 0.1)
    assert gaze.grid == PatchGrid(scales, 14) and gaze.grid.sides[-1] == (27, 27)
    for k, (expected, (rows, columns)) in enumerate(zip(in_blocks(own, 2), gaze.grid.sides, strict=True)):
        assert torch.equal(gaze.mask(k), expected[..., :rows, :columns].flatten(-2))


@pytest.mark.parametrize("stride", [2, 3])
def test_what_is_known_of_large_tiles_lands_on_the_blocks_that_it_is_of(stride: int) -> None:
    """Where the frame is one colour a block, the colours of the tiles' patches are those of the frame's patches."""
    size, block = (200, 330), stride * 16
    tiling = make_tiling(GRID, size, gaze_stride=stride)
    colours = torch.rand(1, 2, 1, -(-size[0] // block), -(-size[1] // block)).expand(-1, -1, 3, -1, -1)
    video = colours.repeat_interleave(block, -1).repeat_interleave(block, -2)[..., : size[0], : size[1]]
    tiles = tiling.cut(video)
    assert tiles.shape == (tiling.count, 2, 3, 64, 64) and tiling.tile_px == 64 * stride
    brightest = torch.cat(
        [
            torch.nn.functional.adaptive_max_pool2d(tiles.flatten(0, 1), side).mean(1).flatten(1)
            for side, _ in GRID.sides
        ],
        dim=1,
    ).unflatten(0, tiles.shape[:2])
    joined = tiling.join(brightest)
    assert joined.shape == (1, 2, tiling.whole.patches_per_frame)
    finest = joined[..., tiling.whole.offsets[-1] :].unflatten(-1, tiling.whole.sides[-1])
    torch.testing.assert_close(finest, video[:, :, 0, ::16, ::16])


def test_a_stride_looks_at_fewer_tiles() -> None:
    tiles = [make_tiling(PatchGrid(), (1080, 1920), gaze_stride=n) for n in (1, 2, 3)]
    assert [(tiling.rows, tiling.columns) for tiling in tiles] == [(5, 9), (3, 5), (2, 3)]
    assert all(tiling.whole == PatchGrid(frame_size=(1080, 1920)) for tiling in tiles)
    assert tiles[0] == make_tiling(PatchGrid(), (1080, 1920))
    model, video = small_model(), random_video(1, 2, side=256)
    for n in (1, 2, 4):
        gaze = model.generate(video, 0.3, target_patch_size=16, gaze_stride=n)
        assert gaze.counts.unique().tolist() == [16 * 6] and gaze.grid == PatchGrid((16, 32, 64), 16, (256, 256))
    assert torch.equal(
        model.generate(video, 0.3, target_patch_size=16, gaze_stride=1).ids,
        model.generate(video, 0.3, target_patch_size=16).ids,
    )


@pytest.mark.parametrize("stride", [0, -1, True, 2.0, "2", None])
def test_strides_that_are_no_number_of_pixels_are_refused(stride: Any) -> None:
    model, video = small_model(), torch.zeros(1, 1, 3, 128, 128)
    for target in ({}, {"target_patch_size": 16}):
        with pytest.raises(ValueError, match="gaze_stride must be a whole number of at least 1, got"):
            model.generate(video, 0.5, gaze_stride=stride, **target)
    with pytest.raises(ValueError, match="gaze_stride must be a whole number"):
        FrameGazer(model, 0.5, tiles=True, gaze_stride=stride)


def test_a_stride_without_tiles_or_without_gain_is_refused() -> None:
    model, video, taken = small_model(), torch.zeros(1, 1, 3, 128, 128), frames(1, 128, 128)
    for call in (
        lambda: model.generate(video, 0.5, gaze_stride=2),
        lambda: model.gaze(taken, 0.5, gaze_stride=2),
        lambda: list(model.gaze_frames(taken, 0.5, gaze_stride=2)),
    ):
        with pytest.raises(ValueError, match="gaze_stride=2 is for gazing in tiles"):
            call()
    for size, stride, enough in ((64, 2, 1), (40, 2, 1), (128, 3, 2), (300, 4, 3)):
        with pytest.raises(ValueError, match=f"gaze_stride={stride} gains nothing here: gaze_stride={enough} needs no"):
            model.generate(torch.zeros(1, 1, 3, size, size), 0.5, target_patch_size=16, gaze_stride=stride)
    with pytest.raises(ValueError, match="gaze_stride=2 gains nothing"):
        model.generate(torch.zeros(1, 1, 3, 64, 64), 0.5, target_scales=[16, 32, 64], gaze_stride=2)
    with pytest.raises(ValueError, match="more patches than 1 x 1 tiles of 128 px"):
        model.generate(video, 0.5, target_scales=[48, 96, 128], gaze_stride=2)


def whole_clip(model: AutoGaze, video: np.ndarray, *limits: Any, **options: Any) -> Gaze:
    normal = model.preprocessor.normalise(torch.from_numpy(video))[None]
    return model.generate(normal, *limits, target_patch_size=16, **options)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("limits", [(0.3, None), (1.0, 0.0)])
def test_frames_in_chunks_equal_the_whole_clip(limits: tuple[float, float | None], stride: int) -> None:
    model, video = small_model(), frames(7, 100, 170)
    chunks = list(model.gaze_frames(video, *limits, tiles=True, at_once=3, gaze_stride=stride))
    assert [chunk.ids.shape[1] for chunk in chunks] == [3, 3, 1]
    joined, whole = Gaze.join(chunks), whole_clip(model, video, *limits, gaze_stride=stride)
    assert joined.grid == whole.grid == PatchGrid((16, 32, 64), 16, (100, 170))
    assert torch.equal(joined.patch_mask(), whole.patch_mask())
    assert torch.equal(model.gaze(video, *limits, tiles=True, gaze_stride=stride).patch_mask(), whole.patch_mask())


def test_without_tiles_frames_are_seen_in_one_square() -> None:
    model, video = small_model(), frames(4, 100, 90)
    joined = Gaze.join(list(model.gaze_frames(iter(video), 0.3)))
    assert torch.equal(joined.ids, model.generate(model.preprocessor(video), 0.3).ids)


def test_frames_must_stay_of_one_size() -> None:
    look = FrameGazer(small_model(), 0.3)
    look(frames(2, 40, 50))
    with pytest.raises(ValueError, match=r"of \(40, 50\) pixels like the first ones, got \(1, 50, 40, 3\)"):
        look(frames(1, 50, 40))
    with pytest.raises(ValueError, match="uint8 RGB"):
        look(frames(1, 40, 50).astype(np.float32))


def test_no_frames_give_no_gaze() -> None:
    assert list(small_model().gaze_frames(iter([]))) == []
