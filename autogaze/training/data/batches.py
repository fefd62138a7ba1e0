"""Training clips: which clip comes when, and how its pixels reach the device.

Clip n of an epoch is a pure function of (seed, epoch, n). Two ways lead to the pixels, chosen by what fits: everything
decoded once and held on the device (`resident_gib`), or worker processes that decode and cut, with only flip, colour
and normalisation on the device. The loader counts the batches it handed out and resumes after them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from autogaze.media.preprocess import Preprocessor
from autogaze.media.video import VideoError
from autogaze.training.data.augment import (
    Augmentation,
    apply_look,
    pan_recipe,
    plain_recipe,
    random_stream,
    scene_recipe,
    shuffled,
    video_recipe,
)
from autogaze.training.data.camera import film
from autogaze.training.data.clip import Clip, ClipRecipe
from autogaze.training.data.index import ClipFile, index_folder
from autogaze.training.data.store import CachedClips, Disk, Store, expected_gib, render

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class RawClips:
    """A batch on its way: recipes, and their pixels unless the device renders them itself."""

    recipes: tuple[ClipRecipe, ...]
    frames: Tensor | None = None  # (B, T, size, size, 3) uint8
    skipped: tuple[tuple[str, str], ...] = ()  # (name, reason)

    def __len__(self) -> int:
        return len(self.recipes)

    def pin_memory(self) -> RawClips:
        return replace(self, frames=None if self.frames is None else self.frames.pin_memory())


class ClipLoader:
    """Batches of one epoch after another; remembers, in a checkpoint too, how many it handed out.

    A clip that cannot be decoded is left out of its batch, by name, counted in `skipped`.
    """

    def __init__(
        self,
        recipes: Callable[[int, int], list[ClipRecipe]],
        batches: int,
        rendered: Callable[[ClipRecipe], Tensor] | None = None,
        workers: int = 0,
    ) -> None:
        self.recipes, self.batches, self.rendered, self.workers = recipes, batches, rendered, workers
        self.epoch, self.position = 0, 0
        self.skipped: dict[str, str] = {}

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[RawClips]:
        self._turn()  # a resumed run may have fewer batches an epoch than it has handed out
        for batch in self._source():
            self.position += 1  # counted before it is handed out: a checkpoint is taken while a batch is in use
            self._turn()
            for name, reason in batch.skipped:
                if name not in self.skipped:
                    log.warning("skipped %s: %s", name, reason)
                self.skipped[name] = reason
            if not batch.recipes:
                raise VideoError(f"no clip of a batch could be decoded: {dict(batch.skipped)}")
            yield batch

    def _turn(self) -> None:
        if self.position >= self.batches:
            self.epoch, self.position = self.epoch + 1, 0

    def _source(self) -> Iterator[RawClips]:
        left = range(self.position, self.batches)
        if self.rendered is None:
            return (RawClips(tuple(self.recipes(self.epoch, number))) for number in left)
        dataset = _Rendered(self.recipes, self.rendered, self.epoch)
        return iter(
            DataLoader(
                dataset,
                batch_size=None,
                sampler=left,
                num_workers=self.workers,
                pin_memory=torch.cuda.is_available(),
                prefetch_factor=4 if self.workers else None,
            )
        )

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position, "skipped": dict(self.skipped)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.position, self.skipped = state["epoch"], state["position"], dict(state["skipped"])


class _Rendered(Dataset):
    """Batches by number, with their pixels; what a worker process runs."""

    def __init__(
        self, recipes: Callable[[int, int], list[ClipRecipe]], rendered: Callable[[ClipRecipe], Tensor], epoch: int
    ) -> None:
        self.recipes, self.rendered, self.epoch = recipes, rendered, epoch

    def __getitem__(self, number: int) -> RawClips:
        kept, frames, skipped = [], [], []
        for recipe in self.recipes(self.epoch, number):
            try:
                frames.append(self.rendered(recipe))
                kept.append(recipe)
            except (VideoError, OSError) as error:
                skipped.append((recipe.name, str(error)))
        return RawClips(tuple(kept), torch.stack(frames) if frames else None, tuple(skipped))


class ClipData(pl.LightningDataModule):
    """Training and validation clips of one folder of videos and photos.

    Args:
        folder: searched for videos and photos (see clip_index.py).
        frames: of a clip.
        size: pixels a side.
        batch_clips: clips a batch on each device.
        seed: of everything random.
        workers: decoding processes where the clips are not resident.
        photo_share: share of training clips that are pans over photos, where there are both; 0 to 1.
        scene_share: share of training clips that are rendered scenes.
        max_clips: use only the first so many training files.
        validate_clips: most clips of a validation pass.
        index_path: where `clips.parquet` is kept; None: nowhere.
        cache: folder of decoded videos; None: no cache on disk.
        cache_gib: bound of that folder.
        resident_gib: hold all decoded clips on the device if they need at most so much memory; 0: never.
        augmentation: what is varied.
        preprocessor: maps uint8 to the model's range; its size is not used.
        epoch_clips: training clips an epoch; by default as many as there are training files.

    Raises:
        FileNotFoundError, ValueError: if the folder is missing, or holds no training file.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        frames: int = 16,
        size: int = 224,
        batch_clips: int = 16,
        seed: int = 0,
        workers: int = 0,
        photo_share: float = 0.5,
        scene_share: float = 0.0,
        max_clips: int | None = None,
        validate_clips: int = 32,
        index_path: str | Path | None = None,
        cache: str | Path | None = None,
        cache_gib: float = 8.0,
        resident_gib: float = 32.0,
        augmentation: Augmentation | None = None,
        preprocessor: Preprocessor | None = None,
        epoch_clips: int | None = None,
    ) -> None:
        super().__init__()
        self.index = index_folder(folder, index_path)
        self.frames, self.size, self.batch_clips, self.seed, self.workers = frames, size, batch_clips, seed, workers
        self.photo_share, self.scene_share, self.validate_clips = photo_share, scene_share, validate_clips
        self.augmentation = augmentation or Augmentation()
        self.preprocessor = preprocessor or Preprocessor()
        self.disk = Disk(self.index, cache, cache_gib)
        self.videos = self.index.of("video", "train")[:max_clips]
        self.photos = self.index.of("photo", "train")[:max_clips]
        self.validation = self._validation_files()
        if not self.videos and not self.photos:
            raise ValueError(f"{folder} has no training file: put videos or photos into it, or into its train/ folder")
        files = [*self.videos, *(self.photos if self.photo_share else ()), *self.validation]
        self.resident = 0 < expected_gib(files) <= resident_gib
        self.held: dict[torch.device, CachedClips] = {}
        self._range: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self.epoch_clips = epoch_clips or max(batch_clips, len(self.videos) + len(self.photos))

    def _validation_files(self) -> tuple[ClipFile, ...]:
        """Held-out videos; pans over held-out photos where there is no held-out video; spread evenly if many."""
        files = self.index.of("video", "val") or self.index.of("photo", "val")
        wanted = min(len(files), self.validate_clips)
        return tuple(files[round(k * (len(files) - 1) / max(1, wanted - 1))] for k in range(wanted))

    def recipe(self, epoch: int, index: int) -> ClipRecipe:
        """Training clip `index` of an epoch."""
        random = random_stream(self.seed, epoch, index)
        if random.random() < self.scene_share:
            return scene_recipe(self.frames, self.augmentation, random)
        photo = self.photos and (not self.videos or random.random() < self.photo_share)
        files, make = (self.photos, pan_recipe) if photo else (self.videos, video_recipe)
        order = shuffled(self.seed, epoch, index // len(files), len(files))
        return make(files[order[index % len(files)]], self.frames, self.augmentation, random)

    def validation_recipes(self) -> list[ClipRecipe]:
        """The clips of a validation pass, always the same."""
        return [plain_recipe(file, self.frames) for file in self.validation]

    def render(self, recipes: list[ClipRecipe] | tuple[ClipRecipe, ...], device: torch.device | str = "cpu") -> Clip:
        """Make the clips of recipes, on a device; the way for everything outside of a training loop."""
        store = self._store(torch.device(device))
        frames = [render(recipe, store, self.size) for recipe in recipes]
        return self._finish(tuple(recipes), torch.stack([part.to(device) for part in frames]))

    def hold(self, device: torch.device | str) -> CachedClips:
        """Decode everything onto a device, once; files that fail are no longer drawn from."""
        device = torch.empty(0, device=device).device  # "cuda" is some cuda:0
        if device not in self.held:
            photos = self.photos if self.photo_share or not self.videos else ()
            held = CachedClips(self.disk, dict.fromkeys((*self.videos, *photos, *self.validation)), device)
            bad = {name for name, _ in held.skipped}
            self.videos = tuple(file for file in self.videos if file.name not in bad)
            self.photos = tuple(file for file in self.photos if file.name not in bad)
            self.validation = tuple(file for file in self.validation if file.name not in bad)
            self.held[device] = held
            log.info("holding %d files, %.1f GiB, on %s", len(held.held), held.gib, device)
        return self.held[device]

    def prepare(self, device: torch.device | str) -> None:
        """Decode the resident clips, if they are: before clips are drawn, since files that fail drop out."""
        if self.resident:
            self.hold(device)

    def rendered(self, batches: Sequence[list[ClipRecipe]], device: torch.device | str) -> Iterator[Clip]:
        """The clips of batches of recipes, one batch after the other, on a device.

        Worker processes decode ahead where the clips are not resident. A clip that cannot be decoded is left out.
        """
        loader = self._loader(lambda _, number: batches[number], len(batches))
        return (
            ClipData.transfer_batch_to_device(self, batch, torch.device(device))
            for batch in (loader if batches else ())
        )

    def _store(self, device: torch.device) -> Store:
        return self.hold(device) if self.resident else self.disk

    def _rendered(self, recipe: ClipRecipe) -> Tensor:
        return render(recipe, self.disk, self.size)

    def _finish(self, recipes: tuple[ClipRecipe, ...], frames: Tensor) -> Clip:
        if frames.device not in self._range:  # normalisation is affine: black and white tell all of it, once
            shades = torch.tensor([0, 255], dtype=torch.uint8, device=frames.device).view(2, 1, 1, 1).expand(2, 1, 1, 3)
            black, white = self.preprocessor.normalise(shades)
            self._range[frames.device] = (white + black) / 2, (white - black) / 2
        grey, half = self._range[frames.device]
        looked = apply_look(frames.movedim(-1, 2).float().contiguous() / 127.5 - 1, recipes)
        seen, truth = film(looked, recipes)
        clean = None if truth is None else torch.addcmul(grey, truth, half)
        return Clip(torch.addcmul(grey, seen, half), recipes, truth=clean)

    def setup(self, stage: str | None = None) -> None:
        """Decode the resident clips before the first batch is drawn."""
        self.prepare(self.trainer.strategy.root_device if self.trainer else "cpu")

    def train_dataloader(self) -> ClipLoader:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        size = self.batch_clips

        def batch(epoch: int, number: int) -> list[ClipRecipe]:
            first = (number * world + rank) * size
            return [self.recipe(epoch, first + k) for k in range(size)]

        return self._loader(batch, max(1, self.epoch_clips // (size * world)))

    def val_dataloader(self) -> ClipLoader:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        recipes, size = self.validation_recipes(), self.batch_clips
        if len(recipes) >= world:  # else all look at the same: a rank without a clip would have nothing to average
            recipes = recipes[rank::world]

        def batch(_: int, number: int) -> list[ClipRecipe]:
            return recipes[number * size : (number + 1) * size]

        return self._loader(batch, -(-len(recipes) // size))

    def _loader(self, batch: Callable[[int, int], list[ClipRecipe]], batches: int) -> ClipLoader:
        return ClipLoader(batch, batches, None if self.resident else self._rendered, self.workers)

    def transfer_batch_to_device(self, batch: RawClips, device: torch.device, dataloader_idx: int = 0) -> Clip:
        """Render on the device what is held there, or move what the workers rendered."""
        if batch.frames is None:
            return self.render(batch.recipes, device)
        return self._finish(batch.recipes, batch.frames.to(device, non_blocking=True))
