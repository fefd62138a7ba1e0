"""Clips to be judged: a folder of videos, 16 frames of each, with what a manifest says about them.

Frames are taken evenly over the whole clip unless a stride is given. A `manifest.csv` in the folder or the one above
may name a clip's `kind` and its `source_group`: results are then shown per kind, and clips cut from the same source
are resampled together when confidence is bootstrapped.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from autogaze.core.grid import PatchGrid
from autogaze.media.clip_files import VIDEO_SUFFIXES, find_clips, shown, why_no_clip_name
from autogaze.media.preprocess import Preprocessor, Resample, resize
from autogaze.media.recompress import recompress
from autogaze.media.video import count_frames, read_frames, read_video
from autogaze.training.data.manifest import clip_facts

THREADS = 8  # FFmpeg decodes outside the interpreter's lock


@dataclass(frozen=True, eq=False)
class ClipSet:
    """Clips in memory."""

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    groups: tuple[str, ...]  # clips of one group come from the same source
    frames: Tensor  # (N, T, H, W, 3) uint8
    preprocessor: Preprocessor
    paths: tuple[Path, ...] = ()  # of the files
    picked: tuple[tuple[int, ...], ...] = ()  # numbers of the frames that were taken of each file
    skipped: tuple[str, ...] = ()  # names of files that could not be read

    def __len__(self) -> int:
        return len(self.names)

    def batches(self, size: int, device: torch.device | str) -> Iterator[tuple[slice, Tensor]]:
        """Parts of the set as preprocessed video (B, T, 3, H, W), with the slice each one is."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            frames = self.frames[part].to(device)
            yield part, self.preprocessor.normalise(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])

    def compressed(self, crf: int) -> Tensor:
        """`frames` taken from the whole files after a second H.264 compression at a constant rate factor."""

        size = (self.frames.shape[2], self.frames.shape[3])

        def one(path: Path, picked: tuple[int, ...]) -> Tensor:
            clip = recompress(read_video(path, threads=1).frames, crf)
            return resize(torch.from_numpy(clip[list(picked)]), size, self.preprocessor.resample)

        with ThreadPoolExecutor(THREADS) as pool:
            return torch.stack(list(pool.map(one, self.paths, self.picked)))


def load_clips(
    folder: str | Path,
    grid: PatchGrid,
    preprocessor: Preprocessor | None = None,
    frames: int = 16,
    stride: int | None = None,
    limit: int | None = None,
) -> ClipSet:
    """Read the clips of a folder and its sub-folders.

    Args:
        folder: where they are.
        grid: says the size that frames are brought to.
        preprocessor: how pixels are scaled; the default one when not given.
        frames: of every clip.
        stride: take every stride-th frame from the start; None takes the frames evenly over the clip.
        limit: at most so many clips, spread over the sorted list of names.

    Raises:
        FileNotFoundError: if the folder does not exist.
        ValueError: if no clip in it can be read and is long enough.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}" + (": it is a file" if folder.exists() else ""))
    if frames < 1 or (stride is not None and stride < 1) or (limit is not None and limit < 1):
        raise ValueError(f"frames, stride and limit must be positive, got {frames}, {stride} and {limit}")
    preprocessor = preprocessor or Preprocessor()
    paths = find_clips(folder, VIDEO_SUFFIXES)
    if limit is not None and limit < len(paths):
        paths = [paths[i] for i in np.linspace(0, len(paths) - 1, limit).round().astype(int)]
    with ThreadPoolExecutor(THREADS) as pool:
        read = list(pool.map(lambda path: _read(path, grid, preprocessor.resample, frames, stride), paths))
    skipped = [(shown(path.name), clip) for path, clip in zip(paths, read, strict=True) if isinstance(clip, str)]
    for name, reason in skipped:
        print(f"skipped {name}: {reason}", file=sys.stderr)
    kept = [(path, clip) for path, clip in zip(paths, read, strict=True) if not isinstance(clip, str)]
    if not kept:
        raise ValueError(
            f"{folder} holds no readable clip of {frames} frames ({len(paths)} videos found, "
            f"suffixes {' '.join(VIDEO_SUFFIXES)})"
        )
    facts = [clip_facts(folder, path) for path, _ in kept]
    return ClipSet(
        tuple(path.relative_to(folder).as_posix() for path, _ in kept),
        tuple(kind for kind, _ in facts),
        tuple(group for _, group in facts),
        torch.stack([clip for _, (clip, _) in kept]),
        preprocessor,
        tuple(path for path, _ in kept),
        tuple(picked for _, (_, picked) in kept),
        tuple(name for name, _ in skipped),
    )


def pick_frames(count: int, frames: int, stride: int | None) -> list[int]:
    """Indices of the frames that are taken of a clip of `count`; fewer than `frames` where it is too short."""
    if stride is None:
        return np.linspace(0, count - 1, frames).round().astype(int).tolist() if count >= frames else list(range(count))
    return list(range(0, count, stride))[:frames]


def _read(
    path: Path, grid: PatchGrid, resample: Resample, frames: int, stride: int | None
) -> tuple[Tensor, tuple[int, ...]] | str:
    """(T, H, W, 3) uint8 at the grid's size with the numbers of the frames, or why there is none."""
    unfit = why_no_clip_name(path)
    if unfit:
        return unfit
    try:
        count = count_frames(path)
        picked = pick_frames(count, frames, stride)
        if len(picked) < frames:
            return f"{count} frames, {frames} are needed" + (f" at stride {stride}" if stride else "")
        return torch.from_numpy(read_frames(path, picked, each=_resized(grid, resample)).frames), tuple(picked)
    except (ValueError, OSError) as error:
        return str(error)


def _resized(grid: PatchGrid, resample: Resample) -> Callable[[np.ndarray], np.ndarray]:
    """Brings one frame to the size of a grid: full-size frames of many clips would not fit."""
    size = (grid.height_px, grid.width_px)
    return lambda frame: resize(torch.from_numpy(np.array(frame))[None], size, resample)[0].numpy()
