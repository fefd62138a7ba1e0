"""Overlays show exactly the patches that were chosen, where the grid says they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from autogaze.core.grid import PatchGrid
from autogaze.core.overlay import NOT_LOOKED_AT, SCALE_COLOURS, Overlay, scale_colour
from autogaze.media.video import write_video
from tests.browser import needs_browser, open_page, wait_until


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(60, 256, (height, width, 3), dtype=np.uint8)


def one(grid: PatchGrid, *ids: int) -> np.ndarray:
    mask = np.zeros(grid.patches_per_frame, bool)
    mask[list(ids)] = True
    return mask


@pytest.mark.parametrize(
    "grid, size",
    [
        (PatchGrid(), (224, 224)),
        (PatchGrid(), (90, 160)),
        (PatchGrid((32, 64), 16, (100, 150)), (100, 150)),
        (PatchGrid(frame_size=(300, 500)), (300, 500)),
    ],
)
def test_what_was_looked_at_is_the_boxes_of_the_grid(grid: PatchGrid, size: tuple[int, int]) -> None:
    overlay = Overlay(grid, size, panel_px=320)
    frame = noise(*size)
    for patch in {0, 1, grid.offsets[1], grid.offsets[-1] + 3, grid.patches_per_frame - 1}:
        seen = (overlay.looked_at(frame, one(grid, patch)) != NOT_LOOKED_AT).any(-1)
        left, top, right, bottom = grid.boxes(torch.tensor(patch)).tolist()
        rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
        found = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        x, y = overlay.width / grid.width_px, overlay.height / grid.height_px
        assert np.abs(found - [left * x, top * y, right * x, bottom * y]).max() <= 1
        assert seen.sum() == len(rows) * len(columns)


def test_finer_patches_show_finer_detail() -> None:
    grid, frame = PatchGrid(), noise(224, 224)
    overlay = Overlay(grid, (224, 224), 224)
    starts = [*grid.offsets, 265]
    errors = [
        np.abs(overlay.looked_at(frame, (np.arange(265) >= start) & (np.arange(265) < stop)).astype(int) - frame).mean()
        for start, stop in zip(starts, starts[1:], strict=False)
    ]
    assert errors == sorted(errors, reverse=True) and errors[-1] == 0 and errors[0] > 10


def test_chosen_patches_wear_the_colour_of_their_scale() -> None:
    grid = PatchGrid()
    overlay = Overlay(grid, (224, 224), 448)
    black = np.zeros((224, 224, 3), np.uint8)
    for k, offset in enumerate(grid.offsets):
        picture = overlay.chosen(black, one(grid, offset))
        assert np.abs(picture[0, 0].astype(int) - np.array(SCALE_COLOURS[k]) * 0.92).max() < 6
    assert not overlay.chosen(black, one(grid)).any()


def test_every_frame_has_the_same_size_with_even_panels() -> None:
    overlay = Overlay(PatchGrid(), (33, 47), 101)
    masks = [np.random.default_rng(k).random(265) < 0.1 * k for k in range(3)]
    shapes = {overlay.draw(noise(33, 47), mask, f"frame {k}").shape for k, mask in enumerate(masks)}
    assert len(shapes) == 1 and overlay.width % 2 == overlay.height % 2 == 0


def test_colours_are_told_apart_without_red_or_green() -> None:
    """Simulated deuteranopia and protanopia (Vienot 1999, linear RGB) keep every pair of scales apart."""
    linear = (np.array(SCALE_COLOURS) / 255) ** 2.2
    to_lms = np.array([[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714], [0.0299566, 0.184309, 1.46709]])
    without_m = np.array([[1, 0, 0], [0.494207, 0, 1.24827], [0, 0, 1]])
    without_l = np.array([[0, 2.02344, -2.52581], [0, 1, 0], [0, 0, 1]])
    for blind in (np.eye(3), without_m, without_l):
        seen = (linear @ (np.linalg.inv(to_lms) @ blind @ to_lms).T).clip(0, 1) ** (1 / 2.2) * 255
        distances = [np.linalg.norm(seen[a] - seen[b]) for a in range(4) for b in range(a)]
        assert min(distances) > 30
    assert scale_colour(4) == SCALE_COLOURS[0]


def test_a_mask_of_another_grid_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mask must be \(265,\)"):
        Overlay(PatchGrid(), (20, 20)).looked_at(noise(20, 20), np.ones(21, bool))


@needs_browser
def test_the_overlay_plays_in_a_browser(tmp_path: Path) -> None:
    write_video(tmp_path / "overlay.mp4", np.full((10, 48, 64, 3), (200, 30, 30), np.uint8), 10)
    data = (tmp_path / "overlay.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat") and b"avc1" in data  # plays before all of it is there
    (tmp_path / "page.html").write_text('<video id="clip" src="overlay.mp4" muted></video>')
    with open_page((tmp_path / "page.html").as_uri()) as page:
        page.evaluate("document.getElementById('clip').play()")
        wait_until(page, "document.getElementById('clip').ended", 60)
        shown = page.evaluate("[clip.videoWidth, clip.videoHeight, clip.duration]")
        assert shown[:2] == [64, 48] and abs(shown[2] - 1.0) < 0.05
