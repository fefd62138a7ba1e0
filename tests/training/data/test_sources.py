"""A run's data: photos beside the videos are found, there is always something to validate on, memory sets a bound."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from autogaze.media.scenes import write_scenes
from autogaze.training.data import sources
from autogaze.training.data.sources import RunClips, resident_gib, resolve
from autogaze.training.recipes import DataRecipe

RECIPE = DataRecipe(frames=2, photo_share=0.5)


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "videos"
    write_scenes(folder, clips=3, frames=3, size=(48, 48), share_val=0.34)
    return folder


def test_photos_beside_the_videos_are_panned_over(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "photos").mkdir()
    cv2.imwrite(str(tmp_path / "data" / "photos" / "a.png"), np.full((300, 300, 3), 90, np.uint8))
    clips = RunClips(videos, tmp_path, RECIPE, 2)
    recipes = [clips.recipe(0, k) for k in range(30)]
    assert {recipe.name for recipe in recipes if recipe.kind == "photo"} == {"../photos/a.png"}
    photo = next(recipe for recipe in recipes if recipe.kind == "photo")
    assert clips.render([photo]).video.shape == (1, 2, 3, 224, 224)


def test_every_stride_up_to_the_longest_that_fits_is_drawn(tmp_path: Path) -> None:
    write_scenes(tmp_path / "videos", clips=2, frames=8, size=(48, 48), share_val=0.5)
    for longest, wanted in ((3, {1, 2, 3}), (20, {1, 2, 3, 4, 5, 6, 7})):
        recipe = DataRecipe(frames=2, photo_share=0.0, longest_stride=longest)
        clips = RunClips(tmp_path / "videos", tmp_path, recipe, 2)
        assert {clips.recipe(0, k).stride for k in range(100)} == wanted


def test_without_held_out_files_training_files_are_validated_on(
    videos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(videos / "val")
    clips = RunClips(videos, tmp_path, RECIPE, 2)
    assert {recipe.name for recipe in clips.validation_recipes()} == {file.name for file in clips.videos}
    assert "no clip for validation" in caplog.text


def test_clips_that_would_take_too_much_memory_are_not_held(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert RunClips(videos, tmp_path, RECIPE, 2).resident
    monkeypatch.setattr(sources, "RESIDENT_SHARE", 1e-9)
    assert 0 < resident_gib() < 1e-6
    assert not RunClips(videos, tmp_path, RECIPE, 2).resident


def test_scenes_are_rendered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "SCENE_CLIPS", 2)
    monkeypatch.setattr(sources, "SCENE_FRAMES", 2)
    folder = resolve(None, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.mp4")}
    assert len(before) == 2 and resolve("scenes", tmp_path) == folder
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.mp4")}


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no data folder"):
        resolve(str(tmp_path / "none"), tmp_path)
