"""Labelled clips: the gaze that comes with a clip is the recorded one, mirrored with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from autogaze.core.grid import PatchGrid
from autogaze.media.scenes import write_scenes
from autogaze.pretrain.labels.clips import LabelledClips, colourless, flipped, mirrored_ids
from autogaze.pretrain.labels.file import Label
from autogaze.training.recipes import PretrainRecipe

GRID = PatchGrid()


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> LabelledClips:
    folder = tmp_path_factory.mktemp("data")
    write_scenes(folder, clips=3, frames=4, size=(64, 64), share_val=0.4)
    recipe = PretrainRecipe(frames=2, photo_share=0.0)
    plain = LabelledClips(folder, folder, recipe, 2, labels=[_label(_first_recipe(folder, recipe))], grid=GRID)
    return plain


def _first_recipe(folder: Path, recipe: PretrainRecipe):  # type: ignore[no-untyped-def]
    from autogaze.training.data.sources import RunClips

    return replace(RunClips(folder, folder, recipe, 2).recipe(0, 0), flip=False)


def _label(recipe):  # type: ignore[no-untyped-def]
    """Two ids in the first frame, one in the second."""
    return Label(recipe, np.array([2, 1]), np.array([0, 69, 5]), np.array([0.5, 0.4, 0.3, 0.3, 0.2], np.float32))


def test_mirroring_twice_is_nothing_and_keeps_rows_and_scales() -> None:
    mirror = mirrored_ids(GRID)
    ids = torch.arange(GRID.patches_per_frame)
    assert torch.equal(mirror[mirror], ids)
    for here, there in zip(GRID.locate(ids)[:2], GRID.locate(mirror)[:2], strict=True):
        assert torch.equal(here, there)
    assert int(mirror[0]) == 1 and int(mirror[69]) == 82  # first cells of the coarsest and of the finest scale


def test_the_gaze_follows_the_clip_into_its_mirror(clips: LabelledClips) -> None:
    recipe = clips.labels[0].recipe
    for one, wanted in ((recipe, [0, 69]), (flipped(recipe), [1, 82])):
        batch = clips.train_dataloader()
        raw = next(iter(batch))
        clip = clips.transfer_batch_to_device(
            replace(raw, recipes=(one,), frames=None if raw.frames is None else raw.frames[:1]), torch.device("cpu")
        )
        assert clip.gaze is not None and clip.gaze.ids[0, 0].tolist() == wanted
        assert clip.gaze.counts.tolist() == [[2, 1]]
        torch.testing.assert_close(clip.task_loss[0, 0], torch.tensor([0.4, 0.3]))


def test_draws_are_of_their_index_and_of_recorded_clips(clips: LabelledClips) -> None:
    drawn = [clips.recipe(0, k) for k in range(20)]
    assert drawn == [clips.recipe(0, k) for k in range(20)]
    assert {colourless(recipe) for recipe in drawn} == {
        colourless(clips.labels[0].recipe),
        colourless(flipped(clips.labels[0].recipe)),
    }


def test_of_two_labels_of_a_clip_the_last_counts(clips: LabelledClips) -> None:
    first = clips.labels[0]
    later = replace(first, ids=np.array([3, 2, 1]))
    other = replace(first, recipe=replace(first.recipe, start=1))
    mixed = LabelledClips(
        clips.index.folder,
        clips.index.folder,
        PretrainRecipe(frames=2, photo_share=0.0),
        2,
        labels=[first, other, later],
        grid=GRID,
    )
    assert [label.ids.tolist() for label in mixed.labels] == [[3, 2, 1], [0, 69, 5]]
    assert {mixed.recipe(0, k).start for k in range(2)} == {first.recipe.start, 1}


def test_no_labels_is_refused(clips: LabelledClips) -> None:
    with pytest.raises(ValueError, match="no labels"):
        LabelledClips(clips.index.folder, clips.index.folder, PretrainRecipe(frames=2), 2, labels=[], grid=GRID)
