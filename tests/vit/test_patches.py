"""Chosen patches are what resizing the whole frame and cutting it would give."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from autogaze import PatchGrid
from autogaze.vit.patches import Taps, cut_patches


@pytest.mark.parametrize("size", [(64, 64), (96, 80), (17, 200)])
@pytest.mark.parametrize("static", [False, True])
def test_patches_equal_those_of_resized_frames(size: tuple[int, int], static: bool) -> None:
    grid = PatchGrid((16, 24, 40, 64), 8)
    video = torch.randn(3, 3, *size)
    ids = torch.randperm(grid.patches_per_frame)
    frame = torch.randint(3, (len(ids),))
    cut = cut_patches(video, frame, ids, Taps.of(grid, *size, video.device), static)
    expected = []
    for scale in grid.scales:
        resized = F.interpolate(video, (scale, scale), mode="bicubic", align_corners=False)
        expected.append(resized.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(1, 2))
    assert torch.allclose(cut, torch.cat(expected, dim=1)[frame, ids], atol=1e-5)


def test_patches_at_the_frames_own_scale_are_copies() -> None:
    grid = PatchGrid((16, 32), 8)
    video, taps = torch.randn(1, 3, 32, 32), Taps.of(PatchGrid((16, 32), 8), 32, 32, torch.device("cpu"))
    assert taps.copied == range(grid.offsets[1], grid.patches_per_frame)
    ids = torch.arange(grid.offsets[1], grid.patches_per_frame)
    cut = cut_patches(video, torch.zeros_like(ids), ids, taps)
    assert torch.equal(cut[5], video[0, :, 8:16, 8:16])


def test_patches_of_a_frame_that_is_not_a_whole_number_of_tiles() -> None:
    grid = PatchGrid((16, 32), 8, frame_size=(40, 70))
    video, taps = torch.randn(1, 3, 40, 70), Taps.of(grid, 40, 70, torch.device("cpu"))
    place = grid.id_at(1, 4, 7)
    cut = cut_patches(video, torch.tensor([0, 0]), torch.tensor([place, grid.id_at(1, 1, 8)]), taps)
    assert torch.equal(cut[0], video[0, :, 32:40, 56:64])
    assert torch.equal(cut[1][..., :6], video[0, :, 8:16, 64:70])  # the border pixel is repeated beyond the frame
    assert torch.equal(cut[1][..., 6:], video[0, :, 8:16, 69:].expand(-1, -1, 2))


def test_a_gradient_reaches_the_pixels_of_chosen_patches_only() -> None:
    grid = PatchGrid((16, 32), 8)
    video = torch.randn(1, 3, 32, 32, requires_grad=True)
    cut = cut_patches(
        video, torch.tensor([0]), torch.tensor([grid.id_at(1, 2, 3)]), Taps.of(grid, 32, 32, video.device)
    )
    cut.sum().backward()
    expected = torch.zeros(3, 32, 32)
    expected[:, 16:24, 24:32] = 1
    assert torch.equal(video.grad[0], expected)
