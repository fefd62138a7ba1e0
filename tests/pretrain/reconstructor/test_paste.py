"""Paste-and-upsample: what is looked at is shown, what is not cannot leak, the newest and finest wins."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from autogaze.core.gaze import Gaze
from autogaze.core.grid import PatchGrid
from autogaze.pretrain.reconstructor.paste import NEVER, Painter, ages, last_seen, newest, paste

GRID = PatchGrid((16, 32, 64))  # 1 + 4 + 16 = 21 patches


def gaze_at(mask: torch.Tensor, grid: PatchGrid = GRID) -> Gaze:
    return Gaze.from_patch_mask(mask, grid)


def one_gaze(frames: dict[int, list[int]], count: int, grid: PatchGrid = GRID) -> Gaze:
    mask = torch.zeros(1, count, grid.patches_per_frame, dtype=torch.bool)
    for frame, ids in frames.items():
        mask[0, frame, ids] = True
    return gaze_at(mask, grid)


def test_all_patches_show_the_frame_itself() -> None:
    video = torch.randn(2, 3, 3, 64, 64)
    everything = gaze_at(torch.ones(2, 3, 21, dtype=torch.bool))
    assert torch.equal(paste(video, everything), video)


def test_no_patch_shows_nothing() -> None:
    assert not paste(torch.randn(1, 2, 3, 64, 64), one_gaze({}, 2)).any()


def test_a_fine_patch_shows_its_own_pixels_and_nothing_else() -> None:
    video = torch.randn(1, 1, 3, 64, 64)
    shown = paste(video, one_gaze({0: [GRID.id_at(64, 1, 2)]}, 1))
    expected = torch.zeros_like(video)
    expected[..., 16:32, 32:48] = video[..., 16:32, 32:48]
    assert torch.equal(shown, expected)


def test_a_coarse_patch_is_the_shrunken_frame_enlarged() -> None:
    """Scale 32 of 64: each pixel is a 2 x 2 mean and comes back bilinearly within its patch."""
    frame = F.interpolate(torch.randn(1, 3, 4, 4), (64, 64), mode="bilinear")[None]
    shown = paste(frame, one_gaze({0: list(range(1, 5))}, 1))
    small = F.interpolate(frame[0], (32, 32), mode="bilinear", antialias=True)
    again = F.interpolate(small[..., :16, :16], (32, 32), mode="bilinear")
    torch.testing.assert_close(shown[0, :, :, :32, :32], again, atol=1e-5, rtol=0)


def test_pixels_outside_the_gaze_cannot_leak_in() -> None:
    video = torch.randn(1, 1, 3, 64, 64)
    other = video.clone()
    other[..., 40:, :] += 5  # beyond the reach of the shrinking filter of the upper patches
    gaze = one_gaze({0: [1, 2, 5]}, 1)
    assert torch.equal(paste(video, gaze), paste(other, gaze))


def test_old_pixels_stay_until_the_place_is_looked_at_again() -> None:
    video = torch.randn(1, 3, 3, 64, 64)
    fine = GRID.id_at(64, 0, 0)
    shown = paste(video, one_gaze({0: [fine], 2: [fine]}, 3))
    corner = (slice(None), slice(0, 16), slice(0, 16))
    for frame, source in ((0, 0), (1, 0), (2, 2)):
        assert torch.equal(shown[0, frame][corner], video[0, source][corner])


def test_finer_wins_within_a_frame_and_newer_over_frames() -> None:
    video = torch.randn(1, 2, 3, 64, 64)
    fine, coarse = GRID.id_at(64, 0, 0), GRID.id_at(16, 0, 0)
    both = paste(video, one_gaze({0: [coarse, fine]}, 2))
    assert torch.equal(both[0, 0, :, :16, :16], video[0, 0, :, :16, :16])
    later = paste(video, one_gaze({0: [fine], 1: [coarse]}, 2))
    assert torch.equal(later[0, 1], paste(video, one_gaze({1: [coarse]}, 2))[0, 1])


def test_later_gazes_and_frames_cannot_change_earlier_ones() -> None:
    video, mask = torch.randn(2, 4, 3, 64, 64), torch.rand(2, 4, 21) < 0.3
    changed, changed_mask = video.clone(), mask.clone()
    changed[:, 2:], changed_mask[:, 2:] = 0, ~mask[:, 2:]
    assert torch.equal(paste(video, gaze_at(mask))[:, :2], paste(changed, gaze_at(changed_mask))[:, :2])


def test_slots_padding_and_order_do_not_matter() -> None:
    video, mask = torch.randn(1, 2, 3, 64, 64), torch.rand(1, 2, 21) < 0.3
    gaze = gaze_at(mask)
    flipped = Gaze(F.pad(gaze.ids.flip(-1), (3, 0), value=7), F.pad(gaze.chosen.flip(-1), (3, 0)), GRID)
    assert torch.equal(paste(video, gaze), paste(video, flipped))


def test_the_published_grid_and_frames_of_any_size_have_exact_borders() -> None:
    for grid in (PatchGrid(), PatchGrid((32, 64, 112, 224), 16, (300, 410))):
        video = torch.randn(1, 1, 3, grid.height_px, grid.width_px)
        for ids in ([0], [len(grid._places) - 1], [grid.offsets[2] + 3]):
            left, top, right, bottom = grid.boxes(torch.tensor(ids))[0].round().int().tolist()
            shown = paste(video, one_gaze({0: ids}, 1, grid))[0, 0].abs().sum(0) > 0
            assert shown[top:bottom, left:right].float().mean() > 0.99
            shown[top:bottom, left:right] = False
            assert not shown.any()


def test_the_small_canvas_is_the_shrunken_full_one() -> None:
    painter = Painter(PatchGrid())
    assert painter.small_side == (4, 8, 8, 16)
    image = painter.cut(torch.rand(3, 224, 224))[1]
    full, small = painter.paint(1, image), painter.paint(1, image, "small")
    assert small.shape == (3, 112, 112)
    torch.testing.assert_close(F.avg_pool2d(full, 2), small, atol=0.05, rtol=0)


def test_ages_count_frames_since_the_last_look() -> None:
    mask = torch.tensor([[[False, True], [True, False], [False, False]]])
    assert ages(last_seen(mask)).tolist() == [[[NEVER, 0], [0, 1], [1, 2]]]


def test_newest_prefers_the_finer_scale_on_a_tie() -> None:
    age = torch.tensor([[0.0, 1, 2, NEVER], [0.0, 2, 1, NEVER]])[:, None]
    assert newest(age)[0, :3].tolist() == [1, 0, 1]


def test_a_video_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"video must be \(B, T, 3, 64, 64\) float, got .* \(1, 2, 3, 32, 32\)"):
        paste(torch.zeros(1, 2, 3, 32, 32), one_gaze({}, 2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_dtype_changes_nothing(dtype: torch.dtype) -> None:
    grid = PatchGrid((32, 64, 1024))  # places that bfloat16 cannot tell apart
    video = torch.rand(1, 1, 3, 1024, 1024)
    gaze = gaze_at(torch.rand(1, 1, grid.patches_per_frame) < 0.5, grid)
    expected, before = paste(video, gaze), torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        found = paste(video, gaze)
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(found, expected)
