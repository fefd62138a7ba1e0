"""Import of the published labels, `gazing_labels.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from autogaze.core.grid import PatchGrid
from autogaze.pretrain.labels.file import Label
from autogaze.training.data.clip import ClipRecipe


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
        frames = [
            np.where(part < 0, -1, part - t * grid.patches_per_frame)
            for t, part in enumerate(np.split(np.array(positions, np.int64), cuts))
        ]
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
