"""Clips in tar files, as WebDataset writes them: many clips an open, which network file systems need.

A member is named as if the shard were a folder: `shard-000.tar/a/clip.mp4`. Its bytes are read at their offset, from a
shard that stays open, and put into a file of the machine's temporary folder while they are decoded.
"""

from __future__ import annotations

import os
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from autogaze.media.clip_files import CLIP_SUFFIXES

SHARD = ".tar"
SHARDS_OPEN = 256  # at most, in a process


class Shard:
    """A tar file without compression: where its members lie.

    Args:
        path: of the file; read once from end to end of its headers.

    Raises:
        ValueError: if it is no tar file, compressed, or cut short.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with tarfile.open(path, "r:") as tar:
                found = [one for one in tar if one.isreg()]
        except tarfile.TarError as error:
            raise ValueError(f"{path} is not a tar file without compression: {error}") from error
        self.members = {os.path.normpath(one.name).lstrip("/"): (one.offset_data, one.size) for one in found}
        self._file = path.open("rb")

    def read(self, name: str) -> bytes:
        """The bytes of a member; threads may read side by side.

        Raises:
            FileNotFoundError: if there is none of this name.
            ValueError: if the shard ends before the member does.
        """
        if name not in self.members:
            raise FileNotFoundError(f"no {name} in {self.path}")
        offset, size = self.members[name]
        data = os.pread(self._file.fileno(), size, offset)
        if len(data) < size:
            raise ValueError(f"{self.path} ends in the middle of {name}")
        return data

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()


def shard_clips(folder: Path) -> list[str]:
    """Names of the videos and photos in the shards below a folder, sorted.

    Raises:
        ValueError: as `Shard`.
    """
    names = []
    for path in sorted(folder.rglob(f"*{SHARD}")):
        if path.is_file() and not path.name.startswith("."):
            inside = path.relative_to(folder).as_posix()
            clips = (name for name in _shard(path, _changed(path)).members if _is_clip(name))
            names += [f"{inside}/{name}" for name in clips]
    return sorted(names)


def split_name(name: str) -> tuple[str, str] | None:
    """The shard and the member of a name; None if it is an ordinary file's."""
    shard, found, member = name.partition(f"{SHARD}/")
    return (f"{shard}{SHARD}", member) if found else None


def clip_state(folder: Path, name: str) -> tuple[int, int]:
    """Size in bytes and time of the last change (ns) of a clip."""
    parts = split_name(name)
    if parts is None or (folder / name).is_file():
        stat = (folder / name).stat()
        return stat.st_size, stat.st_mtime_ns
    changed = _changed(folder / parts[0])
    return _shard(folder / parts[0], changed).members[parts[1]][1], changed


@contextmanager
def clip_path(folder: Path, name: str) -> Iterator[Path]:
    """A path that a decoder can open, for the time of the block."""
    parts = split_name(name)
    if parts is None or (folder / name).is_file():
        yield folder / name
        return
    shard = folder / parts[0]
    data = _shard(shard, _changed(shard)).read(parts[1])
    with tempfile.TemporaryDirectory(prefix="autogaze-clip-") as scratch:
        path = Path(scratch) / Path(parts[1]).name
        path.write_bytes(data)
        yield path


@lru_cache(maxsize=SHARDS_OPEN)
def _shard(path: Path, _changed_ns: int) -> Shard:
    return Shard(path)


def _changed(path: Path) -> int:
    return path.stat().st_mtime_ns


def _is_clip(name: str) -> bool:
    hidden = any(part.startswith(".") for part in Path(name).parts)
    return not hidden and Path(name).suffix.lower() in CLIP_SUFFIXES
