"""The file of labels: one row a clip, and how they were made.

A row is the clip's recipe (file, start, stride, crop and look: enough to rebuild the same pixels), how many patches
each frame chose, the ids in the order of choice, and the reconstruction loss before the first choice and after each.
The table's metadata says how the labels were made, and which shards of the work are in it: a search that was ended by
its time on several devices leaves gaps between them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from autogaze.core.gaze import Gaze
from autogaze.core.grid import PatchGrid
from autogaze.files import atomic_path
from autogaze.training.data.clip import ClipRecipe

_SCHEMA = pa.schema(
    [
        ("recipe", pa.string()),
        ("counts", pa.list_(pa.int32())),
        ("ids", pa.list_(pa.int16())),
        ("losses", pa.list_(pa.float32())),
    ]
)


@dataclass(frozen=True, eq=False)
class Label:
    """Labels of one clip: where to look."""

    recipe: ClipRecipe
    counts: np.ndarray  # (T,) int, choices of each frame
    ids: np.ndarray  # (sum of counts,) int, frame after frame, in the order of choice
    losses: np.ndarray  # (sum of counts + T,) float: of each frame, before its first choice and after each; NaN unknown

    def __post_init__(self) -> None:
        choices, frames = int(self.counts.sum()), len(self.counts)
        if len(self.ids) != choices or len(self.losses) != choices + frames:
            raise ValueError(
                f"{self.recipe.name}: {choices} choices in {frames} frames need as many ids and "
                f"{choices + frames} losses, got {len(self.ids)} and {len(self.losses)}"
            )


@dataclass(frozen=True)
class Shard:
    """A part of the work: a batch of clips."""

    number: int
    asked: int  # clips that were to be labelled
    made: int  # labels there are; fewer where a file could not be decoded


def to_gaze(labels: Sequence[Label], grid: PatchGrid) -> tuple[Gaze, Tensor]:
    """Labels of clips of one length as a gaze.

    Returns:
        the gaze (B, T, K) in the order of choice, and the loss after each choice (B, T, K), NaN where unknown.
    """
    counts = np.stack([label.counts for label in labels]).astype(np.int64)[..., None]  # (B, T, 1)
    slots = np.arange(counts.max() + 1)
    ids = np.zeros((*counts.shape[:2], len(slots) - 1), np.int64)
    losses = np.full((*counts.shape[:2], len(slots)), np.nan, np.float32)
    chosen = slots[:-1] < counts
    ids[chosen] = np.concatenate([label.ids for label in labels])
    losses[slots <= counts] = np.concatenate([label.losses for label in labels])
    gaze = Gaze(torch.from_numpy(ids), torch.from_numpy(chosen), grid)
    return gaze, torch.from_numpy(losses[..., 1:].copy())  # the first one is before the first choice


def write_labels(
    path: str | Path, labels: Sequence[Label], provenance: dict[str, Any], shards: Iterable[Shard] = ()
) -> None:
    """Write a parquet file of labels, whole or not at all.

    Args:
        path: of the file.
        labels: shard after shard.
        provenance: how they were made.
        shards: of which they are; none for labels that are no part of a search.
    """
    metadata = {"autogaze": json.dumps(provenance), "autogaze.shards": json.dumps([astuple(shard) for shard in shards])}
    columns = [
        pa.array([label.recipe.to_json() for label in labels], pa.string()),
        *(_lists([getattr(label, name) for label in labels], name) for name in _SCHEMA.names[1:]),
    ]
    table = pa.Table.from_arrays(columns, schema=_SCHEMA.with_metadata(metadata))
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
    check_provenance(path, provenance)
    table = pq.read_table(path).combine_chunks()
    counts, ids, losses = (
        _arrays(table[name], kind) for name, kind in (("counts", np.int64), ("ids", np.int64), ("losses", np.float32))
    )
    return [
        Label(ClipRecipe.from_json(recipe), *arrays)
        for recipe, *arrays in zip(table["recipe"].to_pylist(), counts, ids, losses, strict=True)
    ]


def read_shards(path: str | Path) -> list[Shard]:
    """Shards that a file of labels holds, in its order; an older file holds the first ones without a gap."""
    provenance, metadata = read_provenance(path), pq.read_schema(path).metadata
    if b"autogaze.shards" in metadata:
        return [Shard(*values) for values in json.loads(metadata[b"autogaze.shards"])]
    rows, size = pq.read_metadata(path).num_rows, provenance.get("batch_clips", 1)
    return [Shard(n, min(size, rows - n * size), min(size, rows - n * size)) for n in range(-(-rows // size))]


def read_provenance(path: str | Path) -> dict[str, Any]:
    """Settings that a file of labels was made with."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no labels at {path}; make them with `autogaze train --stage labels`")
    try:
        schema = pq.read_schema(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is damaged or not a parquet file: {error}") from error
    if b"autogaze" not in (schema.metadata or {}):
        raise ValueError(f"{path} is not a file of labels")
    return json.loads(schema.metadata[b"autogaze"])


def check_provenance(path: str | Path, provenance: dict[str, Any] | None) -> None:
    """Refuse a file that is none of labels, or was made otherwise than `provenance` says; see `read_labels`."""
    found = read_provenance(path)
    if provenance is not None and found != provenance:
        differ = sorted(key for key in provenance.keys() | found.keys() if provenance.get(key) != found.get(key))
        raise ValueError(f"{path} was made with other settings ({', '.join(differ)}); remove it or use another folder")


def _lists(rows: Sequence[np.ndarray], name: str) -> pa.ListArray:
    """A column of lists."""
    kind = _SCHEMA.field(name).type
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int32)
    values = np.concatenate(rows) if rows else np.zeros(0)
    return pa.ListArray.from_arrays(
        pa.array(offsets), pa.array(values.astype(kind.value_type.to_pandas_dtype())), type=kind
    )


def _arrays(column: pa.ChunkedArray, kind: type) -> list[np.ndarray]:
    """The rows of a column of lists."""
    rows: list[np.ndarray] = []
    for chunk in column.chunks:
        offsets = chunk.offsets.to_numpy()
        values = chunk.values.to_numpy(zero_copy_only=False).astype(kind)
        rows += [values[start:end] for start, end in pairwise(offsets)]
    return rows
