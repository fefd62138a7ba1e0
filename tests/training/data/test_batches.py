"""Training clips: the same for the same seed however they are read, resumed where they stopped, none replaced."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from autogaze.media.preprocess import Preprocessor
from autogaze.media.video import write_video
from autogaze.training.data.augment import Augmentation, apply_look, crop, frame_indices, plain_recipe
from autogaze.training.data.batches import ClipData, RawClips
from autogaze.training.data.clip import Clip, ClipRecipe
from autogaze.training.data.index import ClipFile
from autogaze.training.data.store import Disk, expected_gib
from tests.media.make_video import encode, scene

CPU = torch.device("cpu")


def a_video(path: Path, seed: int, frames: int = 20) -> None:
    """Smooth blocks; frame t is brighter than t - 1, so that frames can be told apart after compression."""
    random = np.random.default_rng(seed)
    base = random.integers(0, 100, (1, 6, 8, 3)).repeat(8, 1).repeat(8, 2)
    write_video(path, (base + 7 * np.arange(frames)[:, None, None, None]).astype(np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for i in range(4):
        a_video(folder / f"train/{i}.mp4", i)
    a_video(folder / "val/v.mp4", 9)
    (folder / "train/photos").mkdir()
    for i in range(2):
        photo = np.random.default_rng(i).integers(0, 255, (60, 80, 3), np.uint8)
        cv2.imwrite(str(folder / f"train/photos/{i}.png"), photo)
    return folder


def data_of(folder: Path, **changes: object) -> ClipData:
    return ClipData(folder, **{"frames": 4, "size": 32, "batch_clips": 2, **changes})


def batches(data: ClipData, loader: object = None) -> list[Clip]:
    return [data.transfer_batch_to_device(batch, CPU) for batch in loader or data.train_dataloader()]


def test_clips_depend_on_seed_epoch_and_index_alone(folder: Path) -> None:
    first, again = data_of(folder), data_of(folder, batch_clips=3)
    recipes = [first.recipe(0, i) for i in range(30)]
    assert recipes == [again.recipe(0, i) for i in range(30)]
    assert recipes != [first.recipe(1, i) for i in range(30)]
    assert recipes != [data_of(folder, seed=1).recipe(0, i) for i in range(30)]


def test_all_ways_of_reading_give_the_same_pixels(folder: Path, tmp_path: Path) -> None:
    resident, disk = data_of(folder, epoch_clips=12), data_of(folder, resident_gib=0, epoch_clips=12)
    cached = data_of(folder, resident_gib=0, epoch_clips=12, cache=tmp_path / "cache")
    workers = data_of(folder, resident_gib=0, epoch_clips=12, workers=1)
    assert resident.resident and not disk.resident
    expected = batches(resident)
    for other in (disk, cached, cached, workers):
        for a, b in zip(expected, batches(other), strict=True):
            assert a.recipes == b.recipes
            torch.testing.assert_close(a.video, b.video, atol=2e-6, rtol=0)
    assert list((tmp_path / "cache").glob("*.npy"))


def test_the_cache_on_disk_is_bounded(folder: Path, tmp_path: Path) -> None:
    full = data_of(folder, resident_gib=0, cache=tmp_path, cache_gib=1e-9, photo_share=0.0, epoch_clips=20)
    batches(full)
    assert len(list(tmp_path.glob("*.npy"))) == 1


def test_seeking_finds_the_frames_that_decoding_from_the_start_finds(folder: Path) -> None:
    disk = Disk(data_of(folder).index)
    file = next(file for file in disk.files.values() if file.kind == "video")
    whole = torch.from_numpy(disk.whole(file).copy())
    for start, stride, reverse in ((0, 1, False), (9, 2, False), (13, 1, True), (5, 3, True), (18, 1, False)):
        recipe = ClipRecipe("video", file.name, 4, start, stride, reverse)
        assert torch.equal(disk.frames(recipe), whole[frame_indices(recipe, len(whole))])


def test_a_loader_resumes_behind_the_batches_it_handed_out(folder: Path) -> None:
    loader = data_of(folder).train_dataloader()
    for _ in loader:
        pass
    iterator, seen = iter(loader), []
    seen.append(next(iterator).recipes)
    state = loader.state_dict()
    rest = [batch.recipes for batch in iterator]
    resumed = data_of(folder).train_dataloader()
    resumed.load_state_dict(state)
    assert [batch.recipes for batch in resumed] == rest and state["epoch"] == 1
    assert [batch.recipes for batch in resumed] == [batch.recipes for batch in loader]


class Recorder(pl.LightningModule):
    """Notes which clips come; may die in the middle of an epoch."""

    def __init__(self, die_at: int = -1) -> None:
        super().__init__()
        self.weight, self.seen, self.die_at = torch.nn.Parameter(torch.zeros(())), [], die_at

    def training_step(self, batch: Clip, batch_idx: int) -> torch.Tensor:
        if len(self.seen) == self.die_at:
            raise KeyError("killed")
        self.seen.append((batch.recipes, batch.video.mean().item()))
        return self.weight * batch.video.mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(folder: Path, **settings: object) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_progress_bar=False,
        default_root_dir=folder,
        enable_model_summary=False,
        **settings,
    )


def test_lightning_goes_on_in_the_middle_of_an_epoch(folder: Path, tmp_path: Path) -> None:
    whole = Recorder()
    trainer(tmp_path, enable_checkpointing=False).fit(whole, data_of(folder))
    saver = pl.callbacks.ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    dying = Recorder(die_at=4)
    with pytest.raises(KeyError, match="killed"):
        trainer(tmp_path, callbacks=[saver]).fit(dying, data_of(folder))
    resumed = Recorder()
    trainer(tmp_path, enable_checkpointing=False).fit(
        resumed, data_of(folder), ckpt_path=tmp_path / "step=4.ckpt", weights_only=False
    )
    assert dying.seen + resumed.seen == whole.seen and len(whole.seen) == 6


def test_a_file_that_breaks_later_is_left_out_by_name(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for i in range(2):
        a_video(tmp_path / f"train/{i}.mp4", i)
    data = data_of(tmp_path, resident_gib=0, epoch_clips=8)
    (tmp_path / "train/1.mp4").write_bytes(b"\x00" * 4000)
    loader = data.train_dataloader()
    with caplog.at_level(logging.WARNING):
        got = [batch for batch in loader if batch.recipes]
    assert list(loader.skipped) == ["train/1.mp4"] and "skipped train/1.mp4" in caplog.text
    assert {name for batch in got for name in (r.name for r in batch.recipes)} == {"train/0.mp4"}


def test_a_file_that_breaks_before_it_is_held_is_no_longer_drawn(tmp_path: Path) -> None:
    for i in range(2):
        a_video(tmp_path / f"train/{i}.mp4", i)
    data = data_of(tmp_path)
    (tmp_path / "train/1.mp4").write_bytes(b"\x00" * 4000)
    assert [name for name, _ in data.hold("cpu").skipped] == ["train/1.mp4"]
    assert {data.recipe(0, i).name for i in range(8)} == {"train/0.mp4"}


def test_processes_share_an_epoch_without_overlap(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, drawn = data_of(folder, epoch_clips=8), []
    for rank in range(2):
        monkeypatch.setattr(data, "trainer", type("T", (), {"global_rank": rank, "world_size": 2})())
        drawn.append([recipe for batch in data.train_dataloader() for recipe in batch.recipes])
    monkeypatch.setattr(data, "trainer", None)
    single = [recipe for batch in data.train_dataloader() for recipe in batch.recipes]
    assert sorted(map(str, drawn[0] + drawn[1])) == sorted(map(str, single))


def test_a_run_that_was_made_shorter_goes_on_with_the_next_epoch(folder: Path) -> None:
    loader = data_of(folder, epoch_clips=8).train_dataloader()
    loader.load_state_dict({"epoch": 2, "position": 9, "skipped": {}})
    assert sum(1 for _ in loader) == len(loader) and (loader.epoch, loader.position) == (4, 0)


def test_every_file_comes_once_an_epoch(folder: Path) -> None:
    videos = data_of(folder, photo_share=0.0)
    assert sorted(videos.recipe(3, i).name for i in range(4)) == [f"train/{i}.mp4" for i in range(4)]


def test_photos_videos_and_scenes_come_in_the_shares_asked_for(folder: Path) -> None:
    data = data_of(folder, photo_share=0.25, scene_share=0.5)
    kinds = [data.recipe(0, i).kind for i in range(400)]
    assert 0.42 < kinds.count("scene") / 400 < 0.58 and 0.08 < kinds.count("photo") / 400 < 0.18
    scene = next(data.recipe(0, i) for i in range(400) if data.recipe(0, i).kind == "scene")
    assert data.render([scene]).video.shape == (1, 4, 3, 32, 32)


def test_validation_is_whole_frames_without_variation(folder: Path) -> None:
    data = data_of(folder)
    (clip,) = batches(data, data.val_dataloader())
    assert clip.recipes == (ClipRecipe("video", "val/v.mp4", 4, start=0, stride=6),)  # evenly over 20 frames
    brightness = clip.video.mean((0, 2, 3, 4))
    assert (brightness.diff() > 0).all()


def test_every_frame_of_a_clip_gets_the_same_look() -> None:
    still = torch.rand(2, 1, 3, 16, 16).repeat(1, 3, 1, 1, 1) * 2 - 1
    recipe = ClipRecipe("video", "a", 3, flip=True, brightness=0.1, contrast=0.8, saturation=1.2)
    looked = apply_look(still, [recipe, replace(recipe, flip=False, brightness=-0.2)])
    assert torch.equal(looked[:, :1].expand_as(looked), looked)
    assert looked.abs().max() <= 1
    plain = apply_look(still, [ClipRecipe("video", "a", 3)] * 2)
    torch.testing.assert_close(plain, still)
    mirrored = apply_look(still, [ClipRecipe("video", "a", 3, flip=True)] * 2)
    torch.testing.assert_close(mirrored, still.flip(-1))


def test_pixels_have_the_range_that_the_preprocessor_says(folder: Path) -> None:
    normal = Preprocessor(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    data = data_of(folder, preprocessor=normal)
    frames = torch.randint(0, 256, (1, 2, 4, 4, 3), dtype=torch.uint8)
    clip = data._finish((ClipRecipe("video", "a", 2),), frames)
    expected = normal.normalise(frames[0])[None]
    torch.testing.assert_close(clip.video, expected, atol=1e-5, rtol=0)


def test_crops_are_the_part_they_name() -> None:
    frames = torch.randint(0, 256, (2, 40, 60, 3), dtype=torch.uint8)
    assert torch.equal(crop(frames, (0.25, 0.5, 0.5, 1 / 3), 20), frames[:, 10:30, 30:50])


def test_short_videos_rest_on_their_last_frame() -> None:
    assert frame_indices(ClipRecipe("video", "a", 5, start=1), 3) == [1, 2, 2, 2, 2]
    file = ClipFile("a", "video", "val", 3, 10.0, 0.3, 8, 8, 1, 1, "0" * 32)
    assert plain_recipe(file, 5).start == 0


def test_memory_is_estimated_before_it_is_taken(folder: Path) -> None:
    data = data_of(folder)
    held = data.hold("cpu")
    assert held.gib == pytest.approx(expected_gib((*data.videos, *data.photos, *data.validation)), rel=0.01)


def test_folders_without_training_files_and_wrong_settings_are_refused(tmp_path: Path) -> None:
    a_video(tmp_path / "val/a.mp4", 0)
    with pytest.raises(ValueError, match="has no training file"):
        data_of(tmp_path)
    with pytest.raises(ValueError, match="smallest_crop"):
        Augmentation(smallest_crop=0)


def test_a_batch_without_pixels_is_rendered_on_the_device(folder: Path) -> None:
    data = data_of(folder)
    recipes = tuple(data.recipe(0, i) for i in range(2))
    clip = data.transfer_batch_to_device(RawClips(recipes), CPU)
    assert torch.equal(clip.video, data.render(recipes).video) and clip.video.shape == (2, 4, 3, 32, 32)


@pytest.mark.gpu
def test_the_gpu_renders_what_the_cpu_renders(folder: Path) -> None:
    recipes = [data_of(folder).recipe(0, i) for i in range(12)]
    on_cpu, on_gpu = (data_of(folder).render(recipes, device).video.cpu() for device in ("cpu", "cuda"))
    assert (on_cpu - on_gpu).abs().max() <= 3.1 / 127.5  # a value that rounds the other way, before contrast
    assert (on_cpu - on_gpu).abs().mean() < 2e-4


def test_a_container_that_overstates_its_length_gives_clips_that_move_held_or_not(tmp_path: Path) -> None:
    times = [*(k / 25 for k in range(15)), *(40 + k / 25 for k in range(10))]
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
        encode(tmp_path / part / "pause.mkv", scene(25), times_s=times)
    made = [ClipData(tmp_path, frames=16, batch_clips=1, resident_gib=gib) for gib in (32, 0)]
    assert [data.index.files[0].frames for data in made] == [25, 25]
    recipes = [made[0].recipe(0, k) for k in range(6)] + made[0].validation_recipes()
    held, read = (torch.cat([data.render([recipe]).video for recipe in recipes]) for data in made)
    assert torch.equal(held, read)
    assert all(len({frame.numpy().tobytes() for frame in clip}) == 16 for clip in read)
