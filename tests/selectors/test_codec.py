"""The codec selector: follows what moves in the file, keeps its budget, and knows a still frame."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch

from autogaze.core.grid import PatchGrid
from autogaze.evaluate.clips import load_clips
from autogaze.evaluate.methods import codec_method
from autogaze.selectors.codec import CodecSelector, read_motion, still_frames

GRID, SIDE, FRAMES = PatchGrid((32, 64, 112, 224)), 224, 12


def write(path: Path, frames: np.ndarray, codec: str = "libx264") -> Path:
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=25, options={"crf": "20", "threads": "1"} if codec == "libx264" else {})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A textured square of 64 px that moves to the right in the lower half, over a still texture."""
    draws = np.random.default_rng(0)
    ground = np.kron(draws.integers(60, 200, (28, 28, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    square = np.kron(draws.integers(0, 255, (16, 16, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    frames = np.stack([ground] * FRAMES)
    for t in range(FRAMES):
        frames[t, 128:192, 8 * t : 8 * t + 64] = square
    return write(tmp_path_factory.mktemp("codec") / "moving.mp4", frames)


def test_it_spends_exactly_the_budget_on_what_moves(moving: Path) -> None:
    gaze = CodecSelector(GRID)(moving, [0, 4, 8, 11], 0.05)
    assert gaze.ids.shape == (1, 4, GRID.budget(0.05)) and gaze.chosen.all()
    assert all(len(set(ids.tolist())) == len(ids) for ids in gaze.ids[0])
    boxes = gaze.boxes()[0, 1:]
    middle_y = (boxes[..., 1] + boxes[..., 3]) / 2
    assert ((middle_y > 112) & (middle_y < 208)).float().mean() > 0.6


@pytest.mark.parametrize("ratio", [0.004, 0.5, 0.95, 1.0])
def test_no_patch_is_chosen_twice_at_any_ratio(moving: Path, ratio: float) -> None:
    gaze = CodecSelector(GRID)(moving, range(0, FRAMES, 3), ratio)
    assert (gaze.counts == GRID.budget(ratio)).all()
    assert (gaze.patch_mask().sum(-1) == gaze.counts).all()


def test_a_grid_of_one_scale_works(moving: Path) -> None:
    assert CodecSelector(PatchGrid((224,)))(moving, [0, 6], 0.1).counts.tolist() == [[19, 19]]


def test_still_frames_are_those_in_which_nothing_moves(moving: Path, tmp_path: Path) -> None:
    assert not still_frames(moving)[1:].all() and not still_frames(moving)[0]
    draws = np.random.default_rng(0)
    frame = np.kron(draws.integers(60, 200, (14, 14, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    still = still_frames(write(tmp_path / "still.mp4", np.stack([frame] * 10)))
    assert not still[0] and still[3:].all()


def test_motion_is_where_it_was_and_as_long_as_it_was(moving: Path) -> None:
    motion = read_motion(moving, 14, 14)
    assert motion.moved.shape == (FRAMES, 14, 14) and motion.bits.shape == (FRAMES,)
    rows = motion.moved[2:].mean((0, 2))
    assert rows[8:12].mean() > 5 * rows[:6].mean() + 0.1


def test_the_method_of_an_evaluation_reads_the_files(moving: Path) -> None:
    clips = load_clips(moving.parent, GRID, frames=4)
    gazes = codec_method(GRID).gazes(clips, 2, "cpu", 0.05)
    assert torch.equal(gazes[0].ids, CodecSelector(GRID)(moving, clips.picked[0], 0.05).ids)
    with pytest.raises(ValueError, match="from files"):
        codec_method(GRID).choose(torch.zeros(1, 1, 3, 224, 224), 0.1, torch.Generator())


def test_files_without_motion_vectors_are_refused(moving: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no video"):
        read_motion(tmp_path / "nothing.mp4", 14, 14)
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ValueError, match="cannot be read as a video"):
        read_motion(tmp_path / "text.mp4", 14, 14)
    frames = np.zeros((3, 64, 64, 3), np.uint8)
    with pytest.raises(ValueError, match="exports no motion vectors"):
        read_motion(write(tmp_path / "png.mkv", frames, "ffv1"), 14, 14)
    with pytest.raises(ValueError, match="has 12 frames"):
        CodecSelector(GRID)(moving, [0, 12], 0.1)
