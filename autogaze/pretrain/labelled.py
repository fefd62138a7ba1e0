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
from autogaze.pretrain.recipes import TrainerRecipe
from autogaze.pretrain.sources import RunClips


@dataclass(frozen=True, eq=False)
class ClipLabel:
    """One clip's recorded gaze."""

    recipe: ClipRecipe
    ids: Tensor  # (T, K) int64, in the order of choice
    chosen: Tensor  # (T, K) bool
    loss: Tensor  # (T, K) float32, reconstruction loss after each choice; NaN where unknown


class LabelledClips(RunClips):
    """Draws its training clips from labels; every other one is mirrored, clip and gaze alike.

    Args:
        labels: of training clips.
        grid: of the labels.
        The others are those of `RunClips`.
    """

    def __init__(self, *args: object, labels: Sequence[ClipLabel], grid: PatchGrid, **settings: object) -> None:
        super().__init__(*args, **settings)  # type: ignore[arg-type]
        if not labels:
            raise ValueError("there are no labels to imitate: run `autogaze train --stage labels` again")
        self.labels, self.grid, self.mirror = list(labels), grid, mirrored_ids(grid)
        self.by_recipe = {label.recipe: label for label in self.labels}
        # The same clip mirrored is a label of its own: its recipe differs in `flip` alone.
        flipped = (self._flipped(label) for label in self.labels)
        self.by_recipe |= {label.recipe: label for label in flipped if label.recipe not in self.by_recipe}

    def recipe(self, epoch: int, index: int) -> ClipRecipe:
        random = random_stream(self.seed, epoch, index)
        order = random_stream(self.seed, epoch, 2**40 + index // len(self.labels)).permutation(len(self.labels))
        recipe = self.labels[order[index % len(self.labels)]].recipe
        return replace(recipe, flip=not recipe.flip) if random.random() < 0.5 else recipe

    def transfer_batch_to_device(self, batch: RawClips, device: torch.device, dataloader_idx: int = 0) -> Clip:
        clip = super().transfer_batch_to_device(batch, device, dataloader_idx)
        if not all(recipe in self.by_recipe for recipe in clip.recipes):
            return clip  # of validation
        return with_labels(clip, [self.by_recipe[recipe] for recipe in clip.recipes], self.grid)

    def _flipped(self, label: ClipLabel) -> ClipLabel:
        return replace(label, recipe=replace(label.recipe, flip=not label.recipe.flip), ids=self.mirror[label.ids])


def with_labels(clip: Clip, labels: Sequence[ClipLabel], grid: PatchGrid) -> Clip:
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


def label_clips(judge, clips, recipe, path, resume):  # INTERIM until labels.py is there
    import time as clock

    import pyarrow as pa
    import pyarrow.parquet as pq

    from autogaze.files import atomic_path
    from autogaze.pretrain.gaze_mix import sample_budgets
    from autogaze.pretrain.greedy import GreedySettings, greedy_gaze

    device = next(judge.parameters()).device
    rows, begun = [], clock.monotonic()
    generator = torch.Generator(device).manual_seed(recipe.seed)
    for i in range(0, recipe.clips, recipe.batch_clips):
        clip = clips.render([clips.recipe(0, k) for k in range(i, min(recipe.clips, i + recipe.batch_clips))], device)
        budgets = sample_budgets(torch.full((len(clip),), recipe.mean_ratio, device=device), clip.video.shape[1], judge.grid, generator)
        found = greedy_gaze(judge, clip.video, budgets, GreedySettings(mode=recipe.mode))
        for k, one in enumerate(clip.recipes):
            rows.append({"recipe": one.to_json(), "frames": clip.video.shape[1],
                         "ids": found.gaze.ids[k].flatten().tolist(), "chosen": found.gaze.chosen[k].flatten().tolist(),
                         "loss": found.loss[k, :, 1:].flatten().tolist()})
        if recipe.max_minutes and clock.monotonic() - begun > 60 * recipe.max_minutes:
            break
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary)
    return len(rows)


def read_labels(path):
    import pyarrow.parquet as pq

    return [ClipLabel(ClipRecipe.from_json(row["recipe"]), torch.tensor(row["ids"]).view(row["frames"], -1),
                      torch.tensor(row["chosen"]).view(row["frames"], -1),
                      torch.tensor(row["loss"]).view(row["frames"], -1)) for row in pq.read_table(path).to_pylist()]
