"""Labels: greedy gazes of training clips, made by one process or several.

Searching writes a shard (`labels.shards/00017.parquet`) every batch, whole or not at all; a killed run goes on with
the shards that are missing, and several processes or GPUs take every n-th. `join_shards` makes the one file of
`label_file.py`, whichever shards there are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from autogaze.core.checks import check_options
from autogaze.core.grid import PatchGrid
from autogaze.pretrain.labels.difference import difference_gaze
from autogaze.pretrain.labels.feature_greedy import FeatureSearch, PastedPictures, greedy_features
from autogaze.pretrain.labels.file import (
    Label,
    Shard,
    check_provenance,
    read_labels,
    read_provenance,
    read_shards,
    write_labels,
)
from autogaze.pretrain.labels.greedy import GreedyGaze, GreedySettings, greedy_gaze
from autogaze.pretrain.reconstructor.gaze_mix import sample_budgets
from autogaze.pretrain.reconstructor.network import Reconstructor
from autogaze.training.data.batches import ClipData
from autogaze.training.data.clip import Clip, ClipRecipe

LABEL_EPOCH = 2**20  # labelled clips are other cuts than those that the reconstructor was trained on
MOST_RATIO = 0.5  # of a frame's patches


@dataclass(frozen=True)
class LabelSettings:
    """Settings of making labels."""

    clips: int = 1024
    batch_clips: int = 32  # clips searched side by side; a shard holds so many
    mean_ratio: float = 0.07  # mean share of a frame's patches, over all clips
    seed: int = 0
    mode: Literal["greedy", "difference"] = "greedy"  # greedy: search with the judge; difference: on plain pixels
    greedy: GreedySettings = GreedySettings()
    features: FeatureSearch = FeatureSearch()  # of a search with pasted pictures

    def __post_init__(self) -> None:
        if min(self.clips, self.batch_clips) < 1 or not 0 < self.mean_ratio <= MOST_RATIO:
            raise ValueError(f"clips and batch_clips must be positive and mean_ratio in (0, {MOST_RATIO}], got {self}")
        check_options(self)

    @property
    def shards(self) -> int:
        """The number of shards that there will be."""
        return -(-self.clips // self.batch_clips)

    def asked(self, number: int) -> int:
        """Clips of a shard."""
        return min(self.batch_clips, self.clips - number * self.batch_clips)


def make_labels(
    model: Reconstructor | PastedPictures,
    data: ClipData,
    path: str | Path,
    settings: LabelSettings,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world: int = 1,
    progress: Callable[[int, int], bool | None] | None = None,
) -> list[Label]:
    """Label clips of the training split, or go on with what an earlier or a killed run left.

    Args:
        model: the judge, on `device`; pasted pictures have no mode "difference".
        data: draws and renders the clips.
        path: the parquet file; its shards are kept beside it until they are joined.
        settings: what to make; shards of other settings are refused.
        device: searches here.
        rank, world: this process makes every `world`-th shard from `rank` on; with world > 1 call `join_shards` at
            the end, in one process.
        progress: called after each shard with clips done and clips wanted, of this process; stops the search by
            returning False.

    Returns:
        with one process, the labels asked for that there are now; with several, those that this one made in this call.

    Raises:
        ValueError: if shards of other settings are in the way.
    """
    path, device = Path(path), torch.device(device)
    data.prepare(device)  # before clips are drawn: files that cannot be decoded drop out
    provenance = _provenance(model, data, settings)
    there = _there(path, provenance)
    own = range(rank, settings.shards, world)
    missing = [number for number in own if there.get(number, 0) < settings.asked(number)]
    done = sum(settings.asked(number) for number in own) - sum(map(settings.asked, missing))
    wanted = done + sum(map(settings.asked, missing))
    made: list[Label] = []
    batches = [_recipes(data, settings, number) for number in missing]
    for number, clip in zip(missing, data.rendered(batches, device), strict=True):
        labels = _label_batch(model, clip, settings, number, device)
        write_labels(_shard(path, number), labels, provenance, [Shard(number, settings.asked(number), len(labels))])
        made, done = made + labels, done + settings.asked(number)
        if progress is not None and progress(done, wanted) is False:
            break
    return join_shards(path)[: settings.clips] if world == 1 else made


def join_shards(path: str | Path) -> list[Label]:
    """Make the one file of the shards there are, and of what it held before; remove the shards.

    Raises:
        FileNotFoundError: if there is nothing to join.
        ValueError: if shards were made otherwise than the file.
    """
    path = Path(path)
    files = [path] if path.is_file() else []
    files += sorted(_folder(path).glob("[0-9]*.parquet"))  # a dot begins the name of what was never finished
    if not files:
        raise FileNotFoundError(f"no labels in {path} and no shards of labels in {_folder(path)}")
    provenance = read_provenance(files[0])
    parts: dict[int, tuple[Shard, list[Label]]] = {}
    for file in files:  # a shard counts more than what the file held of it
        labels = read_labels(file, provenance)
        for shard in read_shards(file):
            parts[shard.number], labels = (shard, labels[: shard.made]), labels[shard.made :]
    ordered = [parts[number] for number in sorted(parts)]
    labels = [label for _, part in ordered for label in part]
    if files != [path]:
        write_labels(path, labels, provenance, [shard for shard, _ in ordered])
    for left in _folder(path).glob("*.parquet"):
        left.unlink()
    if _folder(path).is_dir():
        _folder(path).rmdir()
    return labels


def _there(path: Path, provenance: dict[str, Any]) -> dict[int, int]:
    """Shards that need not be made again, with how many clips each was asked for."""
    files = [path] if path.is_file() else []
    asked: dict[int, int] = {}
    for file in [*files, *_folder(path).glob("[0-9]*.parquet")]:
        check_provenance(file, provenance)
        for shard in read_shards(file):
            asked[shard.number] = max(shard.asked, asked.get(shard.number, 0))
    return asked


def _recipes(data: ClipData, settings: LabelSettings, number: int) -> list[ClipRecipe]:
    first = number * settings.batch_clips
    return [data.recipe(LABEL_EPOCH + settings.seed, i) for i in range(first, first + settings.asked(number))]


def _label_batch(
    model: Reconstructor | PastedPictures, clip: Clip, settings: LabelSettings, number: int, device: torch.device
) -> list[Label]:
    generator = torch.Generator().manual_seed(hash((settings.seed, number)) % 2**63)
    budgets = draw_budgets(settings.mean_ratio, len(clip), clip.video.shape[1], model.grid, generator).to(device)
    if isinstance(model, PastedPictures):
        search = settings.features
        found = greedy_features(model.distance, clip.video, budgets, model.grid, search, clip.truth)
        return to_labels(clip.recipes, found)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        found = (
            difference_gaze(model, clip.video, budgets)
            if settings.mode == "difference"
            else greedy_gaze(model, clip.video, budgets, settings.greedy)
        )
    return to_labels(clip.recipes, found)


def draw_budgets(
    mean_ratio: float, clips: int, frames: int, grid: PatchGrid, generator: torch.Generator | None = None
) -> Tensor:
    """(clips, frames) int64 budgets: exponential over clips and over frames, as in the paper, with the mean given."""
    share = -(1 - torch.rand(clips, generator=generator)).log()
    budgets = sample_budgets(mean_ratio * (0.3 + 0.7 * share), frames, grid, generator)
    return budgets.clamp(max=int(MOST_RATIO * grid.patches_per_frame))


def to_labels(recipes: Sequence[ClipRecipe], found: GreedyGaze) -> list[Label]:
    """One label a clip from the result of a search."""
    counts, ids = found.gaze.counts.cpu().numpy(), found.gaze.ids.cpu().numpy()
    losses, labels = found.loss.float().cpu().numpy(), []
    for b, recipe in enumerate(recipes):
        labels.append(
            Label(
                recipe,
                counts[b],
                np.concatenate([ids[b, t, :n] for t, n in enumerate(counts[b])]),
                np.concatenate([losses[b, t, : n + 1] for t, n in enumerate(counts[b])]),
            )
        )
    return labels


def _provenance(model: Reconstructor | PastedPictures, data: ClipData, settings: LabelSettings) -> dict[str, Any]:
    judge: dict[str, Any]
    if isinstance(model, PastedPictures):
        judge, unused = {"judge": model.name}, {"clips", "greedy", "mode"}
    else:
        mark = float(sum(p.detach().double().abs().sum() for p in model.parameters()))  # tells one from another
        judge = {"reconstructor": json.loads(json.dumps(asdict(model.config))), "reconstructor_mark": f"{mark:.9g}"}
        unused = {"clips", "features"} | ({"greedy"} if settings.mode == "difference" else set())
    return {
        **judge,
        "frames": data.frames,
        "files": len(data.index.files),
        "longest_stride": data.augmentation.longest_stride,
        **{key: value for key, value in asdict(settings).items() if key not in unused},
    }


def _folder(path: Path) -> Path:
    return path.with_suffix(".shards")


def _shard(path: Path, number: int) -> Path:
    return _folder(path) / f"{number:05d}.parquet"
