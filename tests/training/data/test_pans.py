"""Camera pans: windows inside the photo, the same for the same seed, and pixels that are the photo's."""

from __future__ import annotations

import torch

from autogaze.training.data.pans import camera_path, render_pan


def corners(path: torch.Tensor) -> torch.Tensor:
    """(frames, 4, 2) pixels of the window's corners."""
    x, y, side, angle = path.unbind(1)
    cos, sin = angle.cos() * side / 2, angle.sin() * side / 2
    return torch.stack(
        [torch.stack([x + u * cos - v * sin, y + u * sin + v * cos], -1) for u in (-1, 1) for v in (-1, 1)], dim=1
    )


def test_the_camera_stays_within_the_photo() -> None:
    for seed in range(60):
        for height, width in ((300, 500), (640, 200), (64, 64)):
            found = corners(camera_path(16, height, width, seed))
            assert found.min() >= -0.01
            assert found[..., 0].max() <= width + 0.01 and found[..., 1].max() <= height + 0.01


def test_some_cameras_move_and_some_stand_still() -> None:
    moved = torch.stack(
        [(camera_path(16, 400, 600, seed)[-1] - camera_path(16, 400, 600, seed)[0])[:2].norm() for seed in range(100)]
    )
    assert 0.08 < (moved == 0).float().mean() < 0.28
    assert moved.median() > 10


def test_the_same_seed_gives_the_same_pixels() -> None:
    photo = torch.randint(0, 256, (90, 120, 3), dtype=torch.uint8)
    assert torch.equal(render_pan(photo, 4, 32, 5), render_pan(photo, 4, 32, 5))
    assert not torch.equal(render_pan(photo, 4, 32, 5), render_pan(photo, 4, 32, 6))


def test_a_ramp_photo_shows_where_the_camera_is() -> None:
    """Red grows with x and green with y, so each frame's mean colour is the camera's centre."""
    y, x = torch.meshgrid(torch.arange(200), torch.arange(250), indexing="ij")
    photo = torch.stack([x, y, torch.zeros_like(x)], -1).to(torch.uint8)
    for seed in range(8):
        path = camera_path(6, 200, 250, seed)
        pan = render_pan(photo, 6, 64, seed).float()
        torch.testing.assert_close(pan.mean((1, 2))[:, :2], path[:, :2] - 0.5, atol=1.0, rtol=0)


def test_pans_are_uint8_of_the_size_asked_for() -> None:
    pan = render_pan(torch.zeros(700, 300, 3, dtype=torch.uint8), 3, 48, 1)
    assert pan.shape == (3, 48, 48, 3) and pan.dtype == torch.uint8
