"""Labels: a file that says how it was made, and shards that resume."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from autogaze.core.grid import PatchGrid
from autogaze.media.video import VideoError, write_video
from autogaze.pretrain.judge import pasted_distance
from autogaze.pretrain.labels import make as labels_module
from autogaze.pretrain.labels.feature_greedy import FeatureSearch, PastedPictures
from autogaze.pretrain.labels.file import Label, read_labels, read_provenance, read_shards, to_gaze
from autogaze.pretrain.labels.greedy import GreedySettings
from autogaze.pretrain.labels.make import LabelSettings, draw_budgets, join_shards, make_labels
from autogaze.pretrain.reconstructor.network import Reconstructor, ReconstructorConfig
from autogaze.pretrain.reconstructor.paste import paste
from autogaze.selectors.difference import DifferenceSelector
from autogaze.training.data.batches import ClipData
from autogaze.training.data.clip import ClipRecipe

CONFIG = ReconstructorConfig(scales=(16, 32, 64), width=16, depth=1, heads=1, mlp_ratio=1)
SETTINGS = LabelSettings(clips=5, batch_clips=2, mean_ratio=0.1, greedy=GreedySettings(candidates=4, picks=2))


@pytest.fixture(scope="module")
def model() -> Reconstructor:
    torch.manual_seed(0)
    return Reconstructor(CONFIG).eval()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ClipData:
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for i in range(3):
        small = random.integers(0, 255, (8, 10, 12, 3), np.uint8)
        write_video(folder / "train" / f"{i}.mp4", small.repeat(8, 1).repeat(8, 2))
    return ClipData(folder, frames=3, size=64, batch_clips=2)


def same(a: Label, b: Label) -> bool:
    return (
        a.recipe == b.recipe
        and np.array_equal(a.ids, b.ids)
        and np.array_equal(a.counts, b.counts)
        and np.array_equal(a.losses, b.losses, equal_nan=True)
    )


def test_a_label_rebuilds_its_clip_and_its_losses(model: Reconstructor, data: ClipData, tmp_path: Path) -> None:
    made = make_labels(model, data, tmp_path / "labels.parquet", SETTINGS)
    assert len(made) == 5
    read = read_labels(tmp_path / "labels.parquet")
    assert all(same(a, b) for a, b in zip(made, read, strict=True))
    gaze, after = to_gaze(read, CONFIG.grid)
    clip = data.render([label.recipe for label in read])
    with torch.no_grad():
        loss = model(clip.video, gaze).loss
    recorded = after.gather(2, gaze.counts[..., None] - 1)[..., 0]
    torch.testing.assert_close(recorded, loss, atol=1e-5, rtol=1e-4)
    assert not (tmp_path / "labels.shards").exists()


def test_labels_of_pasted_pictures_record_what_their_judge_says(data: ClipData, tmp_path: Path) -> None:
    """No reconstructor: each pick brings the picture that the patches show nearer to the frame."""
    judge = PastedPictures(pasted_distance("l1", torch.device("cpu")), "l1", CONFIG.grid)
    path, settings = tmp_path / "labels.parquet", replace(SETTINGS, clips=2, features=FeatureSearch(candidates=4))
    made = make_labels(judge, data, path, settings)
    gaze, after = to_gaze(made, CONFIG.grid)
    clip = data.render([label.recipe for label in made])
    loss = (paste(clip.video, gaze) - clip.video).abs().mean((2, 3, 4))
    recorded = after.gather(2, gaze.counts[..., None] - 1)[..., 0]
    torch.testing.assert_close(recorded, loss, atol=1e-5, rtol=1e-4)
    assert float((after[..., 1:] > after[..., :-1]).float().nanmean()) < 0.1
    assert read_provenance(path)["judge"] == "l1"
    with pytest.raises(ValueError, match="made with other settings|other"):
        make_labels(replace(judge, name="2*l1"), data, path, settings)


def test_labels_have_one_kind_of_judge() -> None:
    with pytest.raises(ValueError, match="mixes a reconstructor with pasted pictures"):
        pasted_distance("l1+reconstructor", torch.device("cpu"))


def test_a_killed_run_goes_on_behind_its_last_shard(
    model: Reconstructor, data: ClipData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_labels(model, data, tmp_path / "whole.parquet", SETTINGS)
    real, numbers = labels_module._label_batch, []

    def counted(*args: object) -> list[Label]:
        numbers.append(args[3])
        if len(numbers) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(labels_module, "_label_batch", counted)
    with pytest.raises(KeyboardInterrupt):
        make_labels(model, data, tmp_path / "labels.parquet", SETTINGS)
    assert not (tmp_path / "labels.parquet").exists()
    resumed = make_labels(model, data, tmp_path / "labels.parquet", SETTINGS)
    assert numbers == [0, 1, 2, 2]
    assert all(same(a, b) for a, b in zip(whole, resumed, strict=True))


def test_more_labels_are_added_to_those_that_are_there(model: Reconstructor, data: ClipData, tmp_path: Path) -> None:
    first = make_labels(model, data, tmp_path / "labels.parquet", replace(SETTINGS, clips=3))
    more = make_labels(model, data, tmp_path / "labels.parquet", SETTINGS)
    assert len(first) == 3 and len(more) == 5
    assert all(same(a, b) for a, b in zip(first[:2], more, strict=False))
    assert len(make_labels(model, data, tmp_path / "labels.parquet", replace(SETTINGS, clips=2))) == 2
    assert len(read_labels(tmp_path / "labels.parquet")) == 5


def test_several_processes_make_the_same_labels(model: Reconstructor, data: ClipData, tmp_path: Path) -> None:
    whole = make_labels(model, data, tmp_path / "whole.parquet", SETTINGS)
    for rank in range(2):
        make_labels(model, data, tmp_path / "labels.parquet", SETTINGS, rank=rank, world=2)
    joined = join_shards(tmp_path / "labels.parquet")
    assert all(same(a, b) for a, b in zip(whole, joined, strict=True))


def test_gaps_that_a_search_ended_by_time_leaves_are_filled_later(
    model: Reconstructor, data: ClipData, tmp_path: Path
) -> None:
    whole, path = make_labels(model, data, tmp_path / "whole.parquet", SETTINGS), tmp_path / "labels.parquet"
    make_labels(model, data, path, SETTINGS, rank=0, world=2, progress=lambda *_: True)
    (tmp_path / "labels.shards" / "00000.parquet").unlink()  # shard 2 is there, 0 and 1 are not
    (tmp_path / "labels.shards" / ".00001.x1y2.parquet").write_bytes(b"PAR1 killed while it was written")
    joined = join_shards(path)
    assert [shard.number for shard in read_shards(path)] == [2] and same(joined[0], whole[4])
    done: list[int] = []
    for rank in range(2):
        make_labels(model, data, path, SETTINGS, rank=rank, world=2, progress=lambda n, _: done.append(n))
    assert done == [3, 2], "of rank 0 (shards 0 and 2: 3 clips) one shard was there"
    assert all(same(a, b) for a, b in zip(whole, join_shards(path), strict=True))
    assert [shard.number for shard in read_shards(path)] == [0, 1, 2]
    assert not (tmp_path / "labels.shards").exists()


def test_a_file_that_knows_no_shards_is_gone_on_with(model: Reconstructor, data: ClipData, tmp_path: Path) -> None:
    whole, path = make_labels(model, data, tmp_path / "whole.parquet", SETTINGS), tmp_path / "labels.parquet"
    provenance = read_provenance(tmp_path / "whole.parquet")
    schema = pa.schema(
        [
            ("recipe", pa.string()),
            ("counts", pa.list_(pa.int32())),
            ("ids", pa.list_(pa.int16())),
            ("losses", pa.list_(pa.float32())),
        ],
        metadata={"autogaze": json.dumps(provenance)},
    )
    rows = [
        {"recipe": label.recipe.to_json(), "counts": label.counts, "ids": label.ids, "losses": label.losses}
        for label in whole[:3]
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema), path)
    assert [(shard.number, shard.asked) for shard in read_shards(path)] == [(0, 2), (1, 1)]
    assert all(same(a, b) for a, b in zip(whole, make_labels(model, data, path, SETTINGS), strict=True))


def test_cheap_labels_are_the_difference_selector_s_and_tell_the_last_loss(
    model: Reconstructor, data: ClipData, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, mode="difference")
    labels = make_labels(model, data, tmp_path / "labels.parquet", settings)
    assert read_provenance(tmp_path / "labels.parquet")["mode"] == "difference"
    with pytest.raises(ValueError, match="made with other settings"):
        make_labels(model, data, tmp_path / "labels.parquet", SETTINGS)
    video = data.render([label.recipe for label in labels]).video
    gaze, after = to_gaze(labels, CONFIG.grid)
    wanted = DifferenceSelector(CONFIG.grid).choose(video, gaze.counts, torch.zeros(video.shape[:2], dtype=torch.bool))
    assert torch.equal(gaze.ids, wanted.ids) and torch.equal(gaze.chosen, wanted.chosen)
    with torch.no_grad():
        loss = model(video, gaze).loss
    torch.testing.assert_close(after.gather(2, gaze.counts[..., None] - 1)[..., 0], loss)
    assert int(after.isfinite().sum()) == gaze.counts.numel(), "the losses before the last choice are not known"


def test_a_clip_that_cannot_be_decoded_is_left_out_and_not_tried_again(
    model: Reconstructor, tmp_path: Path, data: ClipData
) -> None:
    class Gone(ClipData):
        def _rendered(self, recipe: ClipRecipe) -> torch.Tensor:
            if recipe.name.endswith("1.mp4"):
                raise VideoError(f"{recipe.name} is gone")
            return super()._rendered(recipe)

    gone = Gone(data.index.folder, frames=3, size=64, batch_clips=2, resident_gib=0, workers=1)
    labels = make_labels(model, gone, tmp_path / "labels.parquet", replace(SETTINGS, clips=6, batch_clips=3))
    assert len(labels) == 4 and all(not label.recipe.name.endswith("1.mp4") for label in labels)
    assert [(shard.asked, shard.made) for shard in read_shards(tmp_path / "labels.parquet")] == [(3, 2), (3, 2)]
    never: list[int] = []
    make_labels(
        model,
        gone,
        tmp_path / "labels.parquet",
        replace(SETTINGS, clips=6, batch_clips=3),
        progress=lambda done, _: never.append(done),
    )
    assert not never


def test_shards_of_other_settings_are_refused(model: Reconstructor, data: ClipData, tmp_path: Path) -> None:
    make_labels(model, data, tmp_path / "labels.parquet", SETTINGS)
    with pytest.raises(ValueError, match=r"made with other settings \(mean_ratio\)"):
        make_labels(model, data, tmp_path / "labels.parquet", replace(SETTINGS, mean_ratio=0.2))


def test_the_search_stops_when_it_is_told_to(model: Reconstructor, data: ClipData, tmp_path: Path) -> None:
    made = make_labels(model, data, tmp_path / "labels.parquet", SETTINGS, progress=lambda done, wanted: done < 4)
    assert len(made) == 4


def test_provenance_says_how_labels_were_made(model: Reconstructor, data: ClipData, tmp_path: Path) -> None:
    make_labels(model, data, tmp_path / "labels.parquet", SETTINGS)
    provenance = read_provenance(tmp_path / "labels.parquet")
    assert provenance["reconstructor"]["scales"] == [16, 32, 64]
    assert provenance["greedy"]["mode"] == "fast" and provenance["mean_ratio"] == 0.1 and provenance["frames"] == 3


def test_budgets_have_the_mean_ratio_asked_for() -> None:
    budgets = draw_budgets(0.07, 500, 16, PatchGrid(), torch.Generator().manual_seed(0))
    assert budgets.float().mean().item() / 265 == pytest.approx(0.07, rel=0.1)
    assert budgets.min() >= 1 and budgets.max() <= 132


def test_damaged_or_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no labels at"):
        read_labels(tmp_path / "none.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(ValueError, match="damaged or not a parquet file"):
        read_labels(tmp_path / "bad.parquet")


def test_lengths_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="3 choices in 2 frames need as many ids and 5 losses, got 2 and 5"):
        Label(ClipRecipe("video", "a.mp4", 2), np.array([1, 2]), np.array([4, 5]), np.zeros(5))
