"""Labelled clips for next-token prediction: recorded recipes are rendered again, and their gazes come with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from autogaze.core.gaze import Gaze
from autogaze.core.grid import PatchGrid
from autogaze.pretrain.labels.file import Label, to_gaze
from autogaze.training.data.augment import random_stream, shuffled, without_waiting
from autogaze.training.data.batches import RawClips
from autogaze.training.data.clip import Clip, ClipRecipe
from autogaze.training.data.index import report_skipped
from autogaze.training.data.sources import RunClips

JITTER = 0.15  # largest change of brightness (range -1..1) and saturation (a share): neither moves what is worth seeing


class LabelledClips(RunClips):
    """Draws its training clips from labels; half are mirrored, clip and gaze alike, and light and colour vary.

    Args:
        labels: of training clips, of one length; where a clip has two, the last one counts.
        grid: of the labels.
        The others are those of `RunClips`.
    """

    def __init__(self, *args: object, labels: Sequence[Label], grid: PatchGrid, **settings: object) -> None:
        super().__init__(*args, **settings)  # type: ignore[arg-type]
        if not labels:
            raise ValueError("there are no labels to imitate: run `autogaze train --stage labels` again")
        self.grid, self.mirror = grid, mirrored_ids(grid)
        there = {file.name for file in self.index.files}
        away = {
            label.recipe.name for label in labels if label.recipe.kind != "scene" and label.recipe.name not in there
        }
        labels = [label for label in labels if label.recipe.name not in away]
        if away:
            report_skipped(tuple((name, "it has labels, but is not in the folder of videos") for name in sorted(away)))
        if not labels:
            raise ValueError(
                f"none of the labelled files is in {self.index.folder} ({', '.join(sorted(away)[:3])}): "
                "give the folder that they were labelled in with --data"
            )
        self.by_recipe = {colourless(label.recipe): label for label in labels}  # of two labels of a clip, the last
        self.labels = list(self.by_recipe.values())

    def recipe(self, epoch: int, index: int) -> ClipRecipe:
        random = random_stream(self.seed, epoch, index)
        order = shuffled(self.seed, epoch, index // len(self.labels), len(self.labels))
        recipe = self.labels[order[index % len(self.labels)]].recipe
        recipe = flipped(recipe) if random.random() < 0.5 else recipe
        brightness, saturation = random.uniform(-1, 1, 2) * JITTER
        return replace(
            recipe,
            brightness=float(recipe.brightness + brightness),
            saturation=float(recipe.saturation * (1 + saturation)),
        )

    def transfer_batch_to_device(self, batch: RawClips, device: torch.device, dataloader_idx: int = 0) -> Clip:
        clip = super().transfer_batch_to_device(batch, device, dataloader_idx)
        found = [self._label(recipe) for recipe in clip.recipes]
        if any(label is None for label, _ in found):
            return clip  # of validation
        gaze, loss = to_gaze([label for label, _ in found if label is not None], self.grid)
        mirrored = torch.tensor([mirror for _, mirror in found])[:, None, None]
        ids = torch.where(mirrored & gaze.chosen, self.mirror[gaze.ids], gaze.ids)
        gaze = Gaze(without_waiting(ids, device), without_waiting(gaze.chosen, device), self.grid)
        return replace(clip, gaze=gaze, task_loss=without_waiting(loss, device))

    def _label(self, recipe: ClipRecipe) -> tuple[Label | None, bool]:
        """The label of a clip, and whether the clip is its mirror image."""
        as_is, mirrored = self.by_recipe.get(colourless(recipe)), self.by_recipe.get(colourless(flipped(recipe)))
        return (as_is, False) if as_is is not None else (mirrored, True)


def flipped(recipe: ClipRecipe) -> ClipRecipe:
    """The recipe of the mirrored clip."""
    return replace(recipe, flip=not recipe.flip)


def colourless(recipe: ClipRecipe) -> ClipRecipe:
    """The recipe without what may be varied and leave the label right."""
    return replace(recipe, brightness=0.0, saturation=1.0)


def mirrored_ids(grid: PatchGrid) -> Tensor:
    """(patches_per_frame,) int64: the id at the mirror image of every id's place."""
    scale, row, column = grid.locate(torch.arange(grid.patches_per_frame))
    columns = torch.tensor([side[1] for side in grid.sides])[scale]
    return torch.tensor(grid.offsets)[scale] + row * columns + columns - 1 - column
