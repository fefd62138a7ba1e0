"""Stores of decoded frames: the files themselves (`Disk`), or every file decoded once (`CachedClips`).

Both give the same frames, by number. `Disk` seeks to the clip instead of decoding from the start, and can keep what it
decoded: one uint8 .npy a video, read through a memory map, until a bound is reached. `CachedClips` holds all frames on
the device that trains: the GPU then cuts and colours its own clips and never waits. Frames are kept with at most 256
pixels on the short side.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from autogaze.files import atomic_path
from autogaze.media.clip_files import VideoError, locate
from autogaze.media.photo import read_photo
from autogaze.media.scenes import render_scene
from autogaze.media.video import read_chunks, read_frames
from autogaze.training.data.augment import crop, frame_indices, pick_frames
from autogaze.training.data.clip import ClipRecipe
from autogaze.training.data.index import THREADS, ClipFile, ClipIndex, report_skipped
from autogaze.training.data.pans import render_pan
from autogaze.training.data.shards import clip_path

SHORT_SIDE = 256  # pixels kept of a decoded frame
PHOTO_SIDE = 512  # pixels kept of a photo: a pan looks at a part of it
LONGEST_KEPT = 2000  # frames; longer videos are not kept whole


class Store(Protocol):
    """Gives the frames that a recipe asks for."""

    def frames(self, recipe: ClipRecipe) -> Tensor:
        """(T, H, W, 3) uint8 of a video recipe."""

    def photo(self, name: str) -> Tensor:
        """(H, W, 3) uint8."""


class Disk:
    """Reads from the files, with an optional bounded cache of decoded videos.

    Raises VideoError from its methods where a file cannot be decoded.
    """

    def __init__(self, index: ClipIndex, cache: str | Path | None = None, cache_gib: float = 8.0) -> None:
        self.files = {file.name: file for file in index.files}
        self.folder, self.cache, self.cache_bytes = index.folder, Path(cache) if cache else None, cache_gib * 2**30

    def frames(self, recipe: ClipRecipe) -> Tensor:
        file = self.files[recipe.name]
        kept = self._kept(file)
        if kept is not None:
            return torch.from_numpy(kept[frame_indices(recipe, len(kept))])
        wanted = frame_indices(recipe, file.frames)
        numbers = sorted(set(wanted))
        with clip_path(self.folder, file.name) as path:
            read = read_frames(path, numbers, each=lambda frame: shrink(frame[None], SHORT_SIDE)[0])
        return torch.from_numpy(read.frames)[[numbers.index(number) for number in wanted]]

    def photo(self, name: str) -> Tensor:
        with clip_path(self.folder, name) as path:
            return torch.from_numpy(np.array(shrink(read_photo(locate(path))[None], PHOTO_SIDE)[0]))

    def whole(self, file: ClipFile) -> np.ndarray:
        """(T, H, W, 3) uint8: every frame of a video, shrunk; kept on disk where there is a cache with room."""
        kept = self._kept(file)
        return self._decoded(file) if kept is None else kept

    def _decoded(self, file: ClipFile) -> np.ndarray:
        with clip_path(self.folder, file.name) as path:
            return decode_whole(path)

    def _kept(self, file: ClipFile) -> np.ndarray | None:
        if self.cache is None or file.frames > LONGEST_KEPT:
            return None
        path = self.cache / f"{file.hash}-{SHORT_SIDE}.npy"
        if not path.is_file():
            if sum(other.stat().st_size for other in self.cache.glob("*.npy")) >= self.cache_bytes:
                return None
            with atomic_path(path) as temporary:
                np.save(temporary, self._decoded(file))
        return np.load(path, mmap_mode="r")


class CachedClips:
    """Every video and photo of an index, decoded once, held on one device as uint8."""

    def __init__(self, disk: Disk, files: Iterable[ClipFile], device: torch.device | str = "cpu") -> None:
        files = list(files)
        self.held: dict[str, Tensor] = {}
        skipped = []
        with ThreadPoolExecutor(THREADS) as pool:
            for file, result in zip(files, pool.map(lambda file: _load(disk, file), files), strict=True):
                if isinstance(result, str):
                    skipped.append((file.name, result))
                else:
                    self.held[file.name] = result.to(device)
        self.skipped = tuple(skipped)
        report_skipped(self.skipped)

    def frames(self, recipe: ClipRecipe) -> Tensor:
        return pick_frames(self.held[recipe.name], recipe)

    def photo(self, name: str) -> Tensor:
        return self.held[name]

    @property
    def gib(self) -> float:
        """Memory that the frames take."""
        return sum(frames.numel() for frames in self.held.values()) / 2**30


def expected_gib(files: Iterable[ClipFile]) -> float:
    """Memory that `CachedClips` of these files would take."""
    total = 0.0
    for file in files:
        side = PHOTO_SIDE if file.kind == "photo" else SHORT_SIDE
        factor = min(1.0, side / min(file.width, file.height))
        total += file.frames * file.width * factor * file.height * factor * 3
    return total / 2**30


def render(recipe: ClipRecipe, store: Store, size: int) -> Tensor:
    """The pixels of a recipe, on the store's device, before flip and colour: (T, size, size, 3) uint8."""
    if recipe.kind == "photo":
        return render_pan(store.photo(recipe.name), recipe.frames, size, recipe.pan_seed)
    if recipe.kind == "scene":
        return torch.from_numpy(render_scene(int(recipe.name), recipe.frames, (size, size)))
    return crop(store.frames(recipe), recipe.box, size)


def shrink(frames: np.ndarray, side: int) -> np.ndarray:
    """(T, H, W, 3) uint8 with at most `side` pixels on the short side, by area averaging."""
    height, width = frames.shape[1:3]
    factor = side / min(height, width)
    if factor >= 1:
        return frames
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames])


def decode_whole(path: Path) -> np.ndarray:
    """Every frame of a video, shrunk as it is read."""
    return np.concatenate([shrink(chunk.frames, SHORT_SIDE) for chunk in read_chunks(path, threads=1)])


def _load(disk: Disk, file: ClipFile) -> Tensor | str:
    try:
        return disk.photo(file.name) if file.kind == "photo" else torch.from_numpy(np.array(disk.whole(file)))
    except (VideoError, OSError) as error:
        return str(error)
