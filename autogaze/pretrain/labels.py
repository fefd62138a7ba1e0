"""Labels: greedy gazes of training clips, and the file they are kept in.

One row of `labels.parquet` is one clip: its recipe (file, start, stride, crop and look: enough to rebuild the same
pixels), how many patches each frame chose, the ids in the order of choice, and the reconstruction loss before the
first choice and after each. The table's metadata says how the labels were made.

Searching writes a shard (`labels.shards/00017.parquet`) every batch, whole or not at all; a killed run goes on behind
the last shard, and several processes or GPUs take every n-th. `join_shards` makes the one file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from autogaze.files import atomic_path
from autogaze.gaze import Gaze
from autogaze.grid import PatchGrid
from autogaze.pretrain.clips import ClipRecipe
from autogaze.pretrain.data import ClipData
from autogaze.pretrain.gaze_mix import sample_budgets
from autogaze.pretrain.greedy import GreedyGaze, GreedySettings, greedy_gaze
from autogaze.pretrain.reconstructor import Reconstructor

LABEL_EPOCH = 2**20  # labelled clips are other cuts than those that the reconstructor was trained on
MOST_RATIO = 0.5  # of a frame's patches

_SCHEMA = pa.schema([("recipe", pa.string()), ("counts", pa.list_(pa.int32())), ("ids", pa.list_(pa.int16())),
                     ("losses", pa.list_(pa.float32()))])


@dataclass(frozen=True, eq=False)
class Label:
    """Where to look in one clip."""

    recipe: ClipRecipe
    counts: np.ndarray  # (T,) int, choices of each frame
    ids: np.ndarray  # (sum of counts,) int, frame after frame, in the order of choice
    losses: np.ndarray  # (sum of counts + T,) float: of each frame, before its first choice and after each; NaN unknown

    def __post_init__(self) -> None:
        choices, frames = int(self.counts.sum()), len(self.counts)
        if len(self.ids) != choices or len(self.losses) != choices + frames:
            raise ValueError(f"{self.recipe.name}: {choices} choices in {frames} frames need as many ids and "
                             f"{choices + frames} losses, got {len(self.ids)} and {len(self.losses)}")


@dataclass(frozen=True)
class LabelSettings:
    """How labels are made."""

    clips: int = 1024
    batch_clips: int = 32  # clips searched side by side; a shard holds so many
    mean_ratio: float = 0.07  # mean share of a frame's patches, over all clips
    seed: int = 0
    greedy: GreedySettings = GreedySettings()

    def __post_init__(self) -> None:
        if min(self.clips, self.batch_clips) < 1 or not 0 < self.mean_ratio <= MOST_RATIO:
            raise ValueError(f"clips and batch_clips must be positive and mean_ratio in (0, {MOST_RATIO}], got {self}")


def make_labels(model: Reconstructor, data: ClipData, path: str | Path, settings: LabelSettings,
                device: torch.device | str = "cpu", rank: int = 0, world: int = 1,
                progress: Callable[[int, int], bool | None] | None = None) -> list[Label]:
    """Label clips of the training split, or go on with what an earlier or a killed run left.

    Args:
        model: the judge, on `device`.
        data: draws and renders the clips.
        path: the parquet file; its shards are kept beside it until they are joined.
        settings: what to make; shards of other settings are refused.
        device: searches here.
        rank, world: this process makes every `world`-th shard from `rank` on; with world > 1 call `join_shards` at
            the end, in one process.
        progress: called after each shard with clips done and clips wanted; stops the search by returning False.

    Returns:
        all labels, or, with world > 1, those of this process.

    Raises:
        ValueError: if shards of other settings are in the way.
    """
    path, size = Path(path), settings.batch_clips
    provenance = _provenance(model, data, settings)
    before = read_labels(path, provenance) if path.is_file() else []
    labels: list[Label] = []
    for number in range(rank, -(-settings.clips // size), world):
        wanted = min(size, settings.clips - number * size)
        known = before[number * size : number * size + wanted]
        if len(known) < wanted and _shard(path, number).is_file():
            known = read_labels(_shard(path, number), provenance)
        if len(known) != wanted:
            known = _label_batch(model, data, settings, number, torch.device(device))
            write_labels(_shard(path, number), known, provenance)
        labels += known
        if progress is not None and progress(len(labels), settings.clips // world) is False:
            break
    if world == 1:
        write_labels(path, max(labels, before, key=len), provenance)
        _remove_shards(path)
    return labels


def join_shards(path: str | Path) -> list[Label]:
    """Make the one file of the shards that several processes wrote, and remove them."""
    path = Path(path)
    shards = sorted(_shard(path, 0).parent.glob("*.parquet"))
    if not shards:
        raise FileNotFoundError(f"no shards of labels in {_shard(path, 0).parent}")
    provenance = read_provenance(shards[0])
    labels = [label for shard in shards for label in read_labels(shard, provenance)]
    write_labels(path, labels, provenance)
    _remove_shards(path)
    return labels


def _label_batch(model: Reconstructor, data: ClipData, settings: LabelSettings, number: int,
                 device: torch.device) -> list[Label]:
    first = number * settings.batch_clips
    recipes = [data.recipe(LABEL_EPOCH + settings.seed, i)
               for i in range(first, min(first + settings.batch_clips, settings.clips))]
    clip = data.render(recipes, device)
    generator = torch.Generator().manual_seed(hash((settings.seed, number)) % 2**63)
    budgets = draw_budgets(settings.mean_ratio, len(recipes), data.frames, model.grid, generator).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        return to_labels(recipes, greedy_gaze(model, clip.video, budgets, settings.greedy))


def draw_budgets(mean_ratio: float, clips: int, frames: int, grid: PatchGrid,
                 generator: torch.Generator | None = None) -> Tensor:
    """(clips, frames) int64 budgets: exponential over clips and over frames, as in the paper, with the mean given."""
    share = -(1 - torch.rand(clips, generator=generator)).log()
    budgets = sample_budgets(mean_ratio * (0.3 + 0.7 * share), frames, grid, generator)
    return budgets.clamp(max=int(MOST_RATIO * grid.patches_per_frame))


def to_labels(recipes: Sequence[ClipRecipe], found: GreedyGaze) -> list[Label]:
    """One label a clip from the result of a search."""
    counts, ids = found.gaze.counts.cpu().numpy(), found.gaze.ids.cpu().numpy()
    losses, labels = found.loss.float().cpu().numpy(), []
    for b, recipe in enumerate(recipes):
        labels.append(Label(recipe, counts[b], np.concatenate([ids[b, t, :n] for t, n in enumerate(counts[b])]),
                            np.concatenate([losses[b, t, : n + 1] for t, n in enumerate(counts[b])])))
    return labels


def to_gaze(labels: Sequence[Label], grid: PatchGrid) -> tuple[Gaze, Tensor]:
    """Labels of clips of one length as a gaze.

    Returns:
        the gaze (B, T, K) in the order of choice, and the loss after each choice (B, T, K), NaN where unknown.
    """
    frames, width = len(labels[0].counts), max(int(label.counts.max()) for label in labels)
    ids = torch.zeros(len(labels), frames, width, dtype=torch.int64)
    loss = torch.full((len(labels), frames, width), torch.nan)
    counts = torch.from_numpy(np.stack([label.counts for label in labels]).astype(np.int64))
    for b, label in enumerate(labels):
        start = 0
        for t, count in enumerate(label.counts):
            ids[b, t, :count] = torch.from_numpy(label.ids[start : start + count].astype(np.int64))
            after = label.losses[start + t + 1 : start + t + 1 + count]
            loss[b, t, :count] = torch.from_numpy(after.astype(np.float32))
            start += count
    return Gaze(ids, torch.arange(width) < counts[..., None], grid), loss


def write_labels(path: str | Path, labels: Sequence[Label], provenance: dict[str, Any]) -> None:
    """Write a parquet file of labels, whole or not at all."""
    rows = [{"recipe": label.recipe.to_json(), "counts": label.counts.tolist(), "ids": label.ids.tolist(),
             "losses": label.losses.tolist()} for label in labels]
    table = pa.Table.from_pylist(rows, schema=_SCHEMA.with_metadata({"autogaze": json.dumps(provenance)}))
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_labels(path: str | Path, provenance: dict[str, Any] | None = None) -> list[Label]:
    """Read labels.

    Args:
        path: what `write_labels` wrote.
        provenance: refuse a file that was made otherwise.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a file of labels, or was made otherwise.
    """
    found = read_provenance(path)
    if provenance is not None and found != provenance:
        differ = sorted(key for key in provenance.keys() | found.keys() if provenance.get(key) != found.get(key))
        raise ValueError(f"{path} was made with other settings ({', '.join(differ)}); remove it or use another folder")
    return [Label(ClipRecipe.from_json(row["recipe"]), np.array(row["counts"], np.int64),
                  np.array(row["ids"], np.int64), np.array(row["losses"], np.float32))
            for row in pq.read_table(path).to_pylist()]


def read_provenance(path: str | Path) -> dict[str, Any]:
    """How a file of labels was made."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no labels at {path}; make them with `autogaze train --stage labels`")
    try:
        schema = pq.read_schema(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is damaged or not a parquet file: {error}") from error
    if b"autogaze" not in (schema.metadata or {}):
        raise ValueError(f"{path} is not a file of labels")
    return json.loads(schema.metadata[b"autogaze"])


def _provenance(model: Reconstructor, data: ClipData, settings: LabelSettings) -> dict[str, Any]:
    mark = float(sum(p.detach().double().abs().sum() for p in model.parameters()))  # tells one judge from another
    return {"reconstructor": json.loads(json.dumps(asdict(model.config))), "reconstructor_mark": f"{mark:.9g}",
            "frames": data.frames, "files": len(data.index.files),
            **{key: value for key, value in asdict(settings).items() if key != "clips"}}


def _shard(path: Path, number: int) -> Path:
    return path.with_suffix(".shards") / f"{number:05d}.parquet"


def _remove_shards(path: Path) -> None:
    folder = _shard(path, 0).parent
    for shard in folder.glob("*.parquet"):
        shard.unlink()
    if folder.is_dir():
        folder.rmdir()


def import_published(path: str | Path, grid: PatchGrid | None = None) -> list[Label]:
    """Read a published `gazing_labels.json`.

    The published file is not at hand; this reads the form that the published dict of a gaze suggests. One entry a
    clip, in a list, or in an object by video name:

        {"video": "a/b.mp4", "gazing_pos": [...], "num_gazing_each_frame": [...],
         "task_losses": [...] (optional), "start": 0, "stride": 1 (both optional)}

    `gazing_pos` holds id + patches_per_frame * frame of every choice (a nested list, one a frame, is taken too, with
    ids local to the frame); `task_losses` the loss after each choice. An id of -1 is padding and left out.

    Raises:
        FileNotFoundError, ValueError: if there is no such file, or it has another form.
    """
    path, grid = Path(path), grid or PatchGrid()
    if not path.is_file():
        raise FileNotFoundError(f"no labels at {path}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    entries = [{"video": name, **entry} for name, entry in data.items()] if isinstance(data, dict) else data
    try:
        return [_published_label(entry, grid) for entry in entries]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} has not the form of gazing_labels.json (see import_published): {error!r}") from error


def _published_label(entry: dict[str, Any], grid: PatchGrid) -> Label:
    frames, positions = [], entry["gazing_pos"]
    if positions and isinstance(positions[0], list):
        frames = [np.array(ids, np.int64) for ids in positions]
    else:
        cuts = np.cumsum(entry["num_gazing_each_frame"])[:-1]
        frames = [np.where(part < 0, -1, part - t * grid.patches_per_frame)
                  for t, part in enumerate(np.split(np.array(positions, np.int64), cuts))]
    known = np.array(entry.get("task_losses") or [np.nan] * sum(map(len, frames)), np.float32)
    losses, ids, start = [], [], 0
    for frame in frames:
        kept = frame >= 0
        if (frame >= grid.patches_per_frame).any():
            raise ValueError(f"{entry['video']}: ids outside their frame of {grid.patches_per_frame} patches")
        ids.append(frame[kept])
        losses += [np.array([np.nan], np.float32), known[start : start + len(frame)][kept]]
        start += len(frame)
    recipe = ClipRecipe("video", entry["video"], len(frames), entry.get("start", 0), entry.get("stride", 1))
    return Label(recipe, np.array([len(part) for part in ids]), np.concatenate(ids), np.concatenate(losses))
