"""Labelled clips for next-token prediction: recorded recipes are rendered again, and their gazes come with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from autogaze.gaze import Gaze
from autogaze.grid import PatchGrid
from autogaze.pretrain.augment import random_stream
from autogaze.pretrain.clips import Clip, ClipRecipe
from autogaze.pretrain.data import RawClips
from autogaze.pretrain.labels import Label, to_gaze
from autogaze.pretrain.sources import RunClips

JITTER = 0.15  # largest change of brightness (range -1..1) and saturation (a share): neither moves what is worth seeing


@dataclass(frozen=True, eq=False)
class Shown:
    """One clip's recorded gaze as tensors."""

    recipe: ClipRecipe
    ids: Tensor  # (T, K) int64, in the order of choice
    chosen: Tensor  # (T, K) bool
    loss: Tensor  # (T, K) float32, reconstruction loss after each choice; NaN where unknown


class LabelledClips(RunClips):
    """Draws its training clips from labels; half are mirrored, clip and gaze alike, and light and colour vary.

    Args:
        labels: of training clips.
        grid: of the labels.
        The others are those of `RunClips`.
    """

    def __init__(self, *args: object, labels: Sequence[Label], grid: PatchGrid, **settings: object) -> None:
        super().__init__(*args, **settings)  # type: ignore[arg-type]
        if not labels:
            raise ValueError("there are no labels to imitate: run `autogaze train --stage labels` again")
        self.labels, self.grid = list(labels), grid
        shown = [to_shown(label, grid) for label in labels]
        mirror = mirrored_ids(grid)
        self.by_recipe = {colourless(mirrored.recipe): mirrored for mirrored in
                          (replace(one, recipe=flipped(one.recipe), ids=mirror[one.ids]) for one in shown)}
        self.by_recipe |= {colourless(one.recipe): one for one in shown}

    def recipe(self, epoch: int, index: int) -> ClipRecipe:
        random = random_stream(self.seed, epoch, index)
        order = random_stream(self.seed, epoch, 2**40 + index // len(self.labels)).permutation(len(self.labels))
        recipe = self.labels[order[index % len(self.labels)]].recipe
        recipe = flipped(recipe) if random.random() < 0.5 else recipe
        brightness, saturation = random.uniform(-1, 1, 2) * JITTER
        return replace(recipe, brightness=float(recipe.brightness + brightness),
                       saturation=float(recipe.saturation * (1 + saturation)))

    def transfer_batch_to_device(self, batch: RawClips, device: torch.device, dataloader_idx: int = 0) -> Clip:
        clip = super().transfer_batch_to_device(batch, device, dataloader_idx)
        keys = [colourless(recipe) for recipe in clip.recipes]
        if not all(key in self.by_recipe for key in keys):
            return clip  # of validation
        return with_labels(clip, [self.by_recipe[key] for key in keys], self.grid)


def to_shown(label: Label, grid: PatchGrid) -> Shown:
    """A label as tensors."""
    gaze, loss = to_gaze([label], grid)
    return Shown(label.recipe, gaze.ids[0], gaze.chosen[0], loss[0])


def flipped(recipe: ClipRecipe) -> ClipRecipe:
    """The recipe of the mirrored clip."""
    return replace(recipe, flip=not recipe.flip)


def colourless(recipe: ClipRecipe) -> ClipRecipe:
    """The recipe without what may be varied and leave the label right."""
    return replace(recipe, brightness=0.0, saturation=1.0)


def with_labels(clip: Clip, labels: Sequence[Shown], grid: PatchGrid) -> Clip:
    """The clips with their gazes, padded to one length."""
    slots = max(label.ids.shape[1] for label in labels)

    def padded(parts: Sequence[Tensor], value: float) -> Tensor:
        room = [torch.nn.functional.pad(part, (0, slots - part.shape[1]), value=value) for part in parts]
        return torch.stack(room).to(clip.video.device, non_blocking=True)

    gaze = Gaze(padded([label.ids for label in labels], 0), padded([label.chosen for label in labels], False), grid)
    return replace(clip, gaze=gaze, task_loss=padded([label.loss for label in labels], float("nan")))


def mirrored_ids(grid: PatchGrid) -> Tensor:
    """(patches_per_frame,) int64: the id at the mirror image of every id's place."""
    scale, row, column = grid.locate(torch.arange(grid.patches_per_frame))
    columns = torch.tensor([side[1] for side in grid.sides])[scale]
    return torch.tensor(grid.offsets)[scale] + row * columns + columns - 1 - column
