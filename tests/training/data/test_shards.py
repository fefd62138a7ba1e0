"""Tar shards and lists of clips are as good as a folder."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest
import torch

from autogaze.media.scenes import write_scenes
from autogaze.training.data.batches import ClipData
from autogaze.training.data.index import index_folder
from autogaze.training.data.shards import Shard, clip_path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_scenes(tmp_path / "plain", clips=4, frames=5, size=(64, 64), share_val=0.25)
    return tmp_path / "plain"


@pytest.fixture
def shards(folder: Path, tmp_path: Path) -> Path:
    """The same clips in a shard a split, with what WebDataset puts beside them."""
    for split in ("train", "val"):
        path = tmp_path / "shards" / f"{split}" / "000.tar"
        path.parent.mkdir(parents=True)
        with tarfile.open(path, "w") as tar:
            for clip in sorted((folder / split).iterdir()):
                tar.add(clip, clip.name)
            tar.add(__file__, "clip.json")
    return tmp_path / "shards"


def test_shards_give_the_clips_of_the_folder(folder: Path, shards: Path, tmp_path: Path) -> None:
    plain, packed = (ClipData(place, frames=3, size=32, resident_gib=0) for place in (folder, shards))
    names = [[file.name for file in data.index.files] for data in (plain, packed)]
    assert [name.replace("000.tar/", "") for name in names[1]] == names[0]
    for one, other in ((plain.videos, packed.videos), (plain.validation, packed.validation)):
        assert [file.hash for file in one] == [file.hash for file in other] and one
    recipes = [data.recipe(0, 1) for data in (plain, packed)]
    clips = [data.render([recipe]).video for data, recipe in zip((plain, packed), recipes, strict=True)]
    assert torch.equal(*clips)
    held = ClipData(shards, frames=3, size=32).render([recipes[1]]).video
    assert held.shape == clips[0].shape


def test_the_index_opens_a_shard_once_and_knows_it_again(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = index_folder(shards, tmp_path / "clips.parquet")

    def never(*_: object) -> None:
        raise AssertionError("a known clip is opened again")

    monkeypatch.setattr("autogaze.training.data.index.probe", never)
    assert index_folder(shards, tmp_path / "clips.parquet").files == first.files


def test_a_list_names_clips_anywhere(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    clips = sorted(folder.rglob("*.mp4"))
    lines = ["# mine", "", str(clips[0]), os.path.relpath(clips[1], tmp_path / "lists"), "gone.mp4"]
    (tmp_path / "lists" / "list.txt").write_text("\n".join(lines))
    index = index_folder(tmp_path / "lists" / "list.txt")
    assert [(index.folder / file.name).resolve() for file in index.files] == clips[:2]
    assert [name for name, _ in index.skipped] == ["gone.mp4"]


def test_damaged_shards_are_named(shards: Path) -> None:
    path = shards / "train" / "000.tar"
    whole = path.read_bytes()
    (name, *_) = [name for name in Shard(path).members if name.endswith(".mp4")]
    offset, size = Shard(path).members[name]
    path.write_bytes(whole[: offset + size // 2])
    with pytest.raises(ValueError, match="000.tar"), clip_path(shards, f"train/000.tar/{name}"):
        pass
    path.write_bytes(b"no tar" * 200)
    with pytest.raises(ValueError, match="000.tar is not a tar file"):
        index_folder(shards)
