"""Every selector keeps its budget, repeats itself, and looks where its paper says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from autogaze import Gaze, PatchGrid
from autogaze.selectors import SELECTORS, make_selector

GRID = PatchGrid()
USES_FEWER = {"rlt", "shots"}
UNEVEN = PatchGrid((48, 96), 16, frame_size=(96, 160))  # a frame that is not square and has tiles that are cut off


def moving_square(frames: int = 5, size: tuple[int, int] = (224, 224), seed: int = 0) -> Tensor:
    """(1, T, 3, H, W): a bright textured square of 32 px that steps right over a still, textured background."""
    generator = torch.Generator("cpu").manual_seed(seed)
    background = torch.rand(3, *size, generator=generator) * 0.4 - 0.7
    video = background.repeat(1, frames, 1, 1, 1)
    patch = torch.rand(3, 32, 32, generator=generator) * 0.4 + 0.5
    for t in range(frames):
        video[0, t, :, 32:64, 16 * t : 16 * t + 32] = patch
    return video


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


@pytest.mark.parametrize("name", sorted(set(SELECTORS) - USES_FEWER))
@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.9])
def test_the_budget_is_spent_exactly(name: str, ratio: float) -> None:
    gaze = make_selector(name, GRID)(moving_square(3), ratio, seeded())
    assert gaze.counts.tolist() == [[GRID.budget(ratio)] * 3]
    assert gaze.patch_mask().sum(-1).equal(gaze.counts)  # no id twice


@pytest.mark.parametrize("name", sorted(USES_FEWER))
def test_a_method_that_may_use_fewer_never_uses_more(name: str) -> None:
    gaze = make_selector(name, GRID)(moving_square(4), 0.1, seeded())
    assert int(gaze.counts.max()) <= GRID.budget(0.1)
    assert gaze.patch_mask().sum(-1).equal(gaze.counts)


@pytest.mark.parametrize("name", sorted(SELECTORS))
def test_a_selector_repeats_itself(name: str) -> None:
    video = moving_square(3)
    first, again = (make_selector(name, GRID)(video, 0.1, seeded()) for _ in range(2))
    assert first.patch_mask().equal(again.patch_mask())


@pytest.mark.parametrize("name", sorted(set(SELECTORS) - {"random", "first-frame"}))
def test_a_clip_gets_the_same_gaze_alone_and_in_a_batch(name: str) -> None:
    clips = torch.cat([moving_square(3, seed=0), moving_square(3, seed=5).flip(-1)])
    select = make_selector(name, GRID)
    together = select(clips, 0.1).patch_mask()
    assert all(select(clips[i : i + 1], 0.1).patch_mask()[0].equal(together[i]) for i in range(2))


@pytest.mark.parametrize("name", sorted(set(SELECTORS) - {"quadtree", "shots", "signature", "flow"}))
def test_a_later_frame_cannot_change_an_earlier_choice(name: str) -> None:
    video = moving_square(4)
    changed = video.clone()
    changed[:, 3] = 0.9
    select = make_selector(name, GRID)
    before, after = (select(clip, 0.1, seeded()).patch_mask()[:, :3] for clip in (video, changed))
    assert before.equal(after)


@pytest.mark.parametrize("name", sorted(set(SELECTORS) - {"flow"}))
def test_a_grid_of_another_shape_works(name: str) -> None:
    gaze = make_selector(name, UNEVEN)(moving_square(2, (96, 160)), 0.3, seeded())
    assert int(gaze.counts.max()) <= UNEVEN.budget(0.3)
    assert int(gaze.ids.max()) < UNEVEN.patches_per_frame


@pytest.mark.parametrize("name", ["difference", "flow", "evs", "rlt", "pyramid", "shots"])
def test_what_moves_is_found(name: str) -> None:
    gaze = make_selector(name, GRID)(moving_square(6), 0.1)
    fine = gaze.mask(-1)[0, -1].view(14, 14)
    now, before = fine[2:4, 5:7].sum(), fine[2:4, 4:6].sum()
    assert int(now + before) >= 4, "the place of the square, now or one frame ago"


def test_a_random_gaze_follows_its_generator_only() -> None:
    select = make_selector("random", GRID)
    one, two = select(moving_square(2), 0.1, seeded(1)), select(moving_square(2).flip(-1), 0.1, seeded(1))
    assert one.ids.equal(two.ids)
    assert not one.ids.equal(select(moving_square(2), 0.1, seeded(2)).ids)


def test_coarse_takes_whole_scales_and_moves_on_within_the_next() -> None:
    gaze = make_selector("coarse", GRID)(moving_square(2), 0.1)
    assert gaze.mask(0).all() and gaze.mask(1).all()
    assert gaze.mask(2).sum(-1).tolist() == [[6, 6]]
    assert not gaze.mask(2)[0, 0].equal(gaze.mask(2)[0, 1])


def test_first_frame_opens_coarse_and_goes_on_at_random() -> None:
    gaze = make_selector("first-frame", GRID)(moving_square(2), 0.1, seeded())
    assert gaze.mask(0)[0, 0].all() and gaze.mask(1)[0, 0].all()
    assert gaze.mask(-1)[0, 1].sum() > 10


def test_run_length_stops_on_a_still_scene_once_everything_was_seen() -> None:
    still = moving_square(1).repeat(1, 6, 1, 1, 1)
    counts = make_selector("rlt", GRID)(still, 0.2)
    assert counts.counts.tolist() == [[53, 53, 53, 37, 0, 0]]  # 196 patches of the finest scale in all
    assert counts.mask(-1).any(dim=1).all()


def test_shots_drop_repeated_frames_and_begin_anew_at_a_cut() -> None:
    shot = moving_square(1).repeat(1, 3, 1, 1, 1)
    counts = make_selector("shots", GRID)(torch.cat([shot, -shot], dim=1), 0.1).counts[0]
    assert counts.tolist() == [26, 0, 0, 26, 0, 0]


def test_the_quad_tree_splits_where_the_picture_is_busy() -> None:
    video = torch.zeros(1, 1, 3, 224, 224)
    video[..., 112:, 112:] = torch.rand(112, 112, generator=seeded())
    gaze = make_selector("quadtree", GRID)(video, 0.1)
    assert gaze.mask(0)[0, 0].tolist() == [True, True, True, False]
    finer = gaze.boxes()[0, 0][gaze.ids[0, 0] >= 4]
    assert len(finer) == 23 and (finer[:, 2:] > 112).all(), "all the rest is in the busy quarter"


@pytest.mark.parametrize("name", ["gradient", "signature"])
def test_saliency_looks_at_the_object(name: str) -> None:
    video = torch.zeros(1, 1, 3, 224, 224)
    video[..., 96:128, 160:192] = (torch.rand(32, 32, generator=seeded()) > 0.5).float()
    box = torch.tensor([96.0, 160.0, 128.0, 192.0])
    first = make_selector(name, GRID)(video, 0.02).boxes()[0, 0, :2]
    assert ((first[:, 1] < box[2]) & (first[:, 3] > box[0]) & (first[:, 0] < box[3]) & (first[:, 2] > box[1])).all()


def test_the_pyramid_keeps_a_coarse_base_in_every_frame() -> None:
    gaze = make_selector("pyramid", GRID)(moving_square(3), 0.1)
    assert gaze.mask(0).all()
    assert gaze.mask(-1).sum(-1).tolist() == [[22] * 3]
    assert make_selector("pyramid", GRID)(moving_square(1), 0.02).mask(0).all()


@pytest.mark.parametrize("ratio", [torch.tensor([0.1, 0.2]), [0.01, 0.1, 0.3]])
def test_budgets_may_differ_by_clip_and_by_frame(ratio: Tensor | list[float]) -> None:
    video = moving_square(3).repeat(2, 1, 1, 1, 1)
    gaze = make_selector("difference", GRID)(video, ratio)
    wanted = [[26] * 3, [53] * 3] if isinstance(ratio, Tensor) else [[2, 26, 79]] * 2
    assert gaze.counts.tolist() == wanted


def test_a_video_of_another_size_is_resized_to_the_grid() -> None:
    assert make_selector("difference", GRID)(moving_square(2, (120, 160)), 0.05).counts.tolist() == [[13, 13]]


def test_an_unknown_name_and_a_bad_ratio_are_refused() -> None:
    with pytest.raises(ValueError, match="no selector 'best'; there are random"):
        make_selector("best", GRID)
    with pytest.raises(ValueError, match="gazing_ratio"):
        make_selector("random", GRID)(moving_square(1), 1.5)
    with pytest.raises(ValueError, match="video must be"):
        make_selector("random", GRID)(torch.zeros(3, 224, 224), 0.1)


def test_every_selector_returns_a_gaze_of_its_grid() -> None:
    for name in SELECTORS:
        gaze = make_selector(name, GRID)(moving_square(2), 0.05)
        assert isinstance(gaze, Gaze) and gaze.grid == GRID and gaze.ids.shape[:2] == (1, 2)


@pytest.mark.gpu
@pytest.mark.parametrize("name", sorted(SELECTORS))
def test_a_gpu_chooses_what_the_cpu_chooses(name: str) -> None:
    video = moving_square(4).repeat(2, 1, 1, 1, 1)
    select = make_selector(name, GRID)
    here, there = select(video, 0.1, seeded()).patch_mask(), select(video.cuda(), 0.1, seeded()).patch_mask().cpu()
    assert float((here & there).sum() / here.sum()) >= 0.95  # sums in another order decide ties otherwise


@pytest.mark.parametrize("name", sorted(SELECTORS))
def test_values_that_are_no_pixels_are_refused(name: str) -> None:
    for wrong in (float("nan"), float("inf")):
        video = moving_square(2)
        video[0, 1, 2, 3, 4] = wrong
        with pytest.raises(ValueError, match="NaN or infinite"):
            make_selector(name, GRID)(video, 0.1, seeded())


@pytest.mark.parametrize("name", sorted(SELECTORS))
def test_defaults_of_torch_change_nothing(name: str) -> None:
    video = moving_square(2)
    expected = make_selector(name, GRID)(video, 0.1, seeded())
    with torch.device("meta"):
        assert make_selector(name, GRID)(video, 0.1, seeded()).ids.equal(expected.ids)
    before = torch.get_default_dtype()
    try:
        for dtype in (torch.float64, torch.bfloat16):
            torch.set_default_dtype(dtype)
            assert make_selector(name, GRID)(video, 0.1, seeded()).ids.equal(expected.ids)
    finally:
        torch.set_default_dtype(before)
