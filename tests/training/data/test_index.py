"""The index of a data folder: what is in it, splits, what cannot be read, and recipes that survive JSON."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from autogaze.core.gaze import Gaze
from autogaze.core.grid import PatchGrid
from autogaze.media.video import write_video
from autogaze.training.data import index as clip_index
from autogaze.training.data.clip import Clip, ClipRecipe
from autogaze.training.data.index import content_hash, index_folder, read_index, split_of


def a_video(path: Path, seed: int = 0, frames: int = 6) -> None:
    random = np.random.default_rng(seed)
    write_video(path, random.integers(0, 255, (frames, 4, 5, 3), np.uint8).repeat(8, 1).repeat(8, 2), fps=10)


def a_photo(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 255, (30, 40, 3), np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    a_video(tmp_path / "data/train/a.mp4")
    a_video(tmp_path / "data/val/deep/b.mp4", seed=1, frames=4)
    a_photo(tmp_path / "data/photos/c.png")
    (tmp_path / "data/notes.txt").write_text("not a clip")
    a_video(tmp_path / "data/.hidden/d.mp4")
    return tmp_path / "data"


def test_files_are_described(folder: Path) -> None:
    index = index_folder(folder)
    assert [file.name for file in index.files] == ["photos/c.png", "train/a.mp4", "val/deep/b.mp4"]
    photo, a, b = index.files
    assert (a.kind, a.split, a.frames, a.width, a.height) == ("video", "train", 6, 40, 32)
    assert a.fps == pytest.approx(10) and a.duration_s == pytest.approx(0.6)
    assert (b.split, b.frames) == ("val", 4)
    assert (photo.kind, photo.frames, photo.width, photo.height) == ("photo", 1, 40, 30)
    assert a.size_bytes == (folder / "train/a.mp4").stat().st_size
    assert index.of("video", "train") == (a,)


def test_corrupt_files_are_left_out_by_name(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "train/broken.mp4").write_bytes(b"\x00" * 500)
    (folder / "train/broken.jpg").write_bytes(b"\xff\xd8 no")
    with caplog.at_level(logging.WARNING):
        index = index_folder(folder)
    assert [name for name, _ in index.skipped] == ["train/broken.jpg", "train/broken.mp4"]
    assert len(index.files) == 3
    assert "skipped train/broken.mp4" in caplog.text and "2 files cannot be read" in caplog.text


def test_known_files_are_not_opened_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = index_folder(folder, tmp_path / "clips.parquet")
    opened = []
    real = clip_index._describe
    monkeypatch.setattr(clip_index, "_describe", lambda where, name: opened.append(name) or real(where, name))
    assert index_folder(folder, tmp_path / "clips.parquet").files == first.files and not opened
    a_video(folder / "train/a.mp4", seed=9, frames=8)
    changed = index_folder(folder, tmp_path / "clips.parquet")
    assert opened == ["train/a.mp4"] and changed.files[1].frames == 8
    assert tuple(read_index(tmp_path / "clips.parquet")) == changed.files


def test_copies_of_a_file_fall_into_one_split(tmp_path: Path) -> None:
    a_video(tmp_path / "x.mp4")
    shutil.copy(tmp_path / "x.mp4", tmp_path / "y.mp4")
    x, y = index_folder(tmp_path).files
    assert x.hash == y.hash and x.split == y.split


def test_a_folders_name_decides_the_split_and_else_nine_of_ten_train() -> None:
    assert split_of("Test/deep/a.mp4", "f" * 32) == "test"
    splits = [split_of("a.mp4", f"{int((i + 0.5) / 1000 * 2**32):08x}") for i in range(1000)]
    assert (splits.count("train"), splits.count("val"), splits.count("test")) == (900, 50, 50)


def test_the_hash_sees_both_ends_and_the_size(tmp_path: Path) -> None:
    data = bytearray(3 << 20)
    hashes = set()
    for change in (None, 0, len(data) - 1, "longer"):
        copy = (
            bytes(data)
            if change is None
            else bytes(data) + b"x"
            if change == "longer"
            else (bytes(data[:change]) + b"\x01" + bytes(data[change + 1 :]))
        )
        (tmp_path / "f").write_bytes(copy)
        hashes.add(content_hash(tmp_path / "f"))
    assert len(hashes) == 4


def test_folders_without_clips_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no data folder"):
        index_folder(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no readable video or photo"):
        index_folder(tmp_path)
    (tmp_path / "bad.parquet").write_bytes(b"no")
    with pytest.raises(ValueError, match="is not an index of clips"):
        read_index(tmp_path / "bad.parquet")


def test_recipes_survive_json() -> None:
    recipe = ClipRecipe("video", "a.mp4", 16, 3, 2, True, (0.1, 0.2, 0.5, 0.6), 7, True, 0.1, 0.9, 1.1)
    assert ClipRecipe.from_json(recipe.to_json()) == recipe


def test_a_clip_moves_with_its_gaze() -> None:
    gaze = Gaze(torch.zeros(1, 2, 3, dtype=torch.int64), torch.ones(1, 2, 3, dtype=torch.bool), PatchGrid())
    clip = Clip(torch.zeros(1, 2, 3, 8, 8), (ClipRecipe("scene", "4", 2),), gaze, torch.zeros(1, 2, 3)).to("meta")
    assert clip.video.device.type == clip.gaze.ids.device.type == clip.task_loss.device.type == "meta"
    assert clip.names == ("4",) and len(clip) == 1
