"""Pictures of a gaze in a notebook show what was chosen, and refuse frames of another clip."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from autogaze import Gaze, PatchGrid
from autogaze.core.overlay import SCALE_COLOURS

GRID = PatchGrid()


def gaze_of(*clips: list[list[int]]) -> Gaze:
    """Clips of frames of ids."""
    mask = torch.zeros(len(clips), len(clips[0]), GRID.patches_per_frame, dtype=torch.bool)
    for b, clip in enumerate(clips):
        for t, ids in enumerate(clip):
            mask[b, t, ids] = True
    return Gaze.from_patch_mask(mask, GRID)


def pixels_of(picture: Image.Image, colour: tuple[int, int, int]) -> int:
    return int((np.asarray(picture) == colour).all(-1).sum())


def test_the_plot_has_bars_as_high_as_the_counts_in_the_colours_of_the_scales() -> None:
    gaze = gaze_of([[0, 1, 2], [69, 70, 71, 72, 73, 74]], [[], [4]])
    first, second = gaze.plot(), gaze.plot(1)
    coarse, fine = (pixels_of(first, SCALE_COLOURS[k]) - pixels_of(second, SCALE_COLOURS[k]) for k in (0, 3))
    assert coarse > 0 and abs(fine / coarse - 2) < 0.05
    assert pixels_of(second, SCALE_COLOURS[1]) > pixels_of(first, SCALE_COLOURS[1])
    assert np.array_equal(np.asarray(second), np.asarray(gaze[1].plot()))


@pytest.mark.parametrize("frames", [1, 2000])
def test_any_number_of_frames_is_plotted_at_one_size(frames: int) -> None:
    assert gaze_of([[0]] * frames).plot().size == gaze_of([[0]] * 5).plot().size


def test_the_sheet_shows_frames_and_what_was_looked_at() -> None:
    white = np.full((2, 90, 160, 3), 255, np.uint8)
    nothing, everything = gaze_of([[], []]), gaze_of([list(range(4))] * 2)
    dark = [pixels_of(gaze.draw(white), (38, 38, 38)) for gaze in (nothing, everything)]
    assert dark[0] > 10_000 and dark[1] < 100  # of letters
    assert nothing.draw(white).size == everything.draw(white).size


def test_frames_may_be_held_in_any_way_and_a_batch_is_drawn_clip_by_clip() -> None:
    gaze = gaze_of([[0], [1]], [[2], [3]])
    frames = np.random.default_rng(0).integers(0, 256, (2, 2, 64, 48, 3), np.uint8)
    drawn = gaze.draw(frames, clip=1)
    held = (frames[1], torch.from_numpy(frames[1]), [Image.fromarray(frame) for frame in frames[1]])
    assert all(np.array_equal(np.asarray(drawn), np.asarray(gaze.draw(one, clip=1))) for one in held)
    assert gaze[1:, :1].draw(frames[1, 0]).height > 0


def test_at_most_the_asked_frames_are_drawn() -> None:
    gaze, frames = gaze_of([[0]] * 9), np.zeros((9, 60, 80, 3), np.uint8)
    assert gaze.draw(frames, stills=3).width < gaze.draw(frames, stills=9).width
    with pytest.raises(ValueError, match="stills must be positive"):
        gaze.draw(frames, stills=0)


def test_frames_that_were_not_gazed_at_are_refused() -> None:
    with pytest.raises(ValueError, match=r"2, got 3; gaze\[:, 4:8\]"):
        gaze_of([[0], [1]]).draw(np.zeros((3, 20, 20, 3), np.uint8))
    with pytest.raises(IndexError, match="no clip 1"):
        gaze_of([[0]]).draw(np.zeros((1, 20, 20, 3), np.uint8), clip=1)


def test_a_notebook_shows_words_and_the_plot() -> None:
    gaze = gaze_of([[0, 1], [69]])
    shown = gaze._repr_html_()
    assert repr(gaze) in shown
    data = re.search(r'src="data:image/png;base64,([^"]+)"', shown)
    assert data is not None
    picture = Image.open(io.BytesIO(base64.b64decode(data[1])))
    assert np.array_equal(np.asarray(picture), np.asarray(gaze.plot()))


@pytest.mark.parametrize("shape", [(0, 2, 3), (1, 0, 3)])
def test_an_empty_gaze_is_shown_in_words_alone(shape: tuple[int, int, int]) -> None:
    gaze = Gaze(torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.bool), GRID)
    assert repr(gaze) in gaze._repr_html_() and "<img" not in gaze._repr_html_()


def test_a_plot_of_no_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="no frames"):
        Gaze(torch.zeros(1, 0, 3, dtype=torch.int64), torch.zeros(1, 0, 3, dtype=torch.bool), GRID).plot()
