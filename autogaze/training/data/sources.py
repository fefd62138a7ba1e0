"""Sources of a run's data: the user's folder, photos that lie beside it, or scenes that the project renders."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

from autogaze.media.scenes import write_scenes
from autogaze.training.data.augment import Augmentation
from autogaze.training.data.batches import ClipData
from autogaze.training.data.index import index_folder
from autogaze.training.data.store import Disk, expected_gib
from autogaze.training.recipes import DataRecipe

SCENES = "scenes"  # the name that asks for rendered scenes
SCENE_CLIPS, SCENE_FRAMES = 40, 32
INDEX, PHOTO_INDEX = "clips.parquet", "photos.parquet"
RESIDENT_GIB = 32.0  # most memory that decoded clips may take
RESIDENT_SHARE = 0.25  # of the memory there is: a stage also holds the model, and a GPU is shared with others

log = logging.getLogger(__name__)
_without_validation: set[Path] = set()  # folders of which that was said: every stage reads its folder


def resolve(data: str | None, run: Path) -> Path:
    """The folder to train on; scenes are rendered into the run, once.

    Raises:
        FileNotFoundError: if the folder does not exist.
    """
    if data in (None, SCENES):
        folder = run / SCENES
        if not (folder / "val").is_dir():
            print(f"rendering {SCENE_CLIPS} scenes into {folder}", file=sys.stderr)
            write_scenes(folder, SCENE_CLIPS, SCENE_FRAMES, kinds=("harbour",))
        return folder
    folder = Path(data).expanduser()
    if not folder.is_dir() and not (folder.suffix.lower() == ".txt" and folder.is_file()):
        what = f"{folder} is a file" if folder.exists() else f"no data folder {folder}"
        raise FileNotFoundError(
            f"{what}: name a folder of videos or a list of paths (.txt), or leave --data out for rendered scenes"
        )
    return folder


class RunClips(ClipData):
    """The clips of a run's stage: photos may lie beside the folder, and there is always something to validate on.

    Args:
        folder: videos and photos, flat or with train/ and val/; photos are also looked for in `photos` beside it.
        run: folder of the run, which keeps the index.
        recipe: seed, frames, workers, share of photos.
        batch_clips, validate_clips, epoch_clips: as in `ClipData`.
    """

    def __init__(
        self,
        folder: Path,
        run: Path,
        recipe: DataRecipe,
        batch_clips: int,
        validate_clips: int = 32,
        epoch_clips: int | None = None,
    ) -> None:
        beside = folder.resolve().parent / "photos"
        super().__init__(
            folder,
            frames=recipe.frames,
            batch_clips=batch_clips,
            seed=recipe.seed,
            workers=recipe.workers,
            photo_share=recipe.photo_share,
            max_clips=recipe.max_clips,
            validate_clips=validate_clips,
            index_path=run / INDEX,
            epoch_clips=epoch_clips,
            resident_gib=resident_gib(),
            augmentation=Augmentation(longest_stride=recipe.longest_stride, camera=recipe.camera),
        )
        if recipe.photo_share and not self.photos and folder.is_dir() and beside.is_dir():
            self._add_photos(beside, run / PHOTO_INDEX, recipe.max_clips)
        self.holds_out = bool(self.validation)  # False: validation is on training clips
        if not self.holds_out:
            if folder not in _without_validation:
                log.warning("%s holds no clip for validation: using training clips (put some into val/)", folder)
                _without_validation.add(folder)
            self.validation = (self.videos or self.photos)[:validate_clips]

    def _add_photos(self, folder: Path, index_path: Path, most: int | None) -> None:
        prefix = Path(os.path.relpath(folder, self.index.folder)).as_posix()
        photos = tuple(
            replace(photo, name=f"{prefix}/{photo.name}")
            for photo in index_folder(folder, index_path).files
            if photo.kind == "photo" and photo.split == "train"
        )
        self.photos = photos[:most]
        self.index = replace(self.index, files=(*self.index.files, *self.photos))
        self.disk = Disk(self.index)
        files = [*self.videos, *self.photos, *self.validation]
        self.resident = self.resident and expected_gib(files) <= resident_gib()


def resident_gib() -> float:
    """Memory that decoded clips may take on the device that trains: the GPU where there is one."""
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
    else:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 2**33
    return min(RESIDENT_GIB, RESIDENT_SHARE * total / 2**30)
