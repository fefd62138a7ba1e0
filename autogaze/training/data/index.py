"""The index of a data folder: every video and photo in it, what it is, and which split it belongs to.

A file under a folder named train, val or test belongs to that split. Any other is put into one by its content (90 %
train, 5 % val, 5 % test), so that copies of a file never fall into two splits. A file that cannot be read is left out
by name, with the reason, and never replaced by another.

Frames are counted, not believed: a container's own count may be duration x rate, and a longer sound track makes it
wrong. `clips.parquet` keeps the index: a file whose name, size and time of change are known is not opened again.
"""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from autogaze.files import atomic_path
from autogaze.media.clip_files import (
    CLIP_SUFFIXES,
    content_hash,
    find_clips,
    listed_clips,
    locate,
    shown,
    why_no_clip_name,
)
from autogaze.media.photo import is_photo
from autogaze.media.video import count_frames, probe
from autogaze.training.data.shards import clip_path, clip_state, shard_clips

SPLITS = ("train", "val", "test")
THREADS = 16  # FFmpeg decodes outside the interpreter's lock
VERSION = b"2"  # of the table: those before it hold counts that nobody counted

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClipFile:
    """One readable file."""

    name: str  # path relative to the folder, with forward slashes
    kind: str  # "video" | "photo"
    split: str  # "train" | "val" | "test"
    frames: int  # 1 for a photo
    fps: float  # 0 for a photo
    duration_s: float
    width: int  # pixels
    height: int  # pixels
    size_bytes: int
    changed_ns: int  # time of the file's last change
    hash: str  # BLAKE2 of the size and of the first and last MiB


@dataclass(frozen=True)
class ClipIndex:
    """Clips of a data folder, sorted by name."""

    folder: Path
    files: tuple[ClipFile, ...]
    skipped: tuple[tuple[str, str], ...] = ()  # (name, reason) of files that cannot be read

    def of(self, kind: str, split: str) -> tuple[ClipFile, ...]:
        """The files of one kind and split."""
        return tuple(file for file in self.files if file.kind == kind and file.split == split)

    def save(self, path: str | Path) -> None:
        """Write the readable files as a parquet table."""
        table = pa.Table.from_pylist([asdict(file) for file in self.files], schema=_SCHEMA)
        with atomic_path(path) as temporary:
            pq.write_table(table, temporary)


_TYPES = {"str": pa.string(), "int": pa.int64(), "float": pa.float64()}
_SCHEMA = pa.schema([(field.name, _TYPES[str(field.type)]) for field in fields(ClipFile)], {b"autogaze_index": VERSION})


def index_folder(folder: str | Path, path: str | Path | None = None) -> ClipIndex:
    """List, open and describe every video and photo below a folder.

    Args:
        folder: searched with its sub-folders, and tar shards in them; names that start with a dot are passed over. Or
            a text file with a path a line, relative to the file's folder.
        path: a parquet file to reuse and to bring up to date; None: keep no file.

    Raises:
        FileNotFoundError: if the folder does not exist.
        ValueError: if it holds no readable video or photo.
    """
    folder = Path(folder).expanduser()
    if folder.suffix.lower() == ".txt" and folder.is_file():
        listed, folder = listed_clips(folder), folder.parent
        names = sorted({Path(os.path.relpath(name, folder)).as_posix() for name in listed})
    elif folder.is_dir():
        names = [found.relative_to(folder).as_posix() for found in find_clips(folder)] + shard_clips(folder)
    else:
        raise FileNotFoundError(f"no data folder {folder}")
    known = {file.name: file for file in read_index(path)} if path is not None and Path(path).is_file() else {}
    with ThreadPoolExecutor(THREADS) as pool:
        results = list(pool.map(lambda name: _known(folder, name, known) or _describe(folder, name), names))
    index = ClipIndex(
        folder,
        tuple(result for result in results if isinstance(result, ClipFile)),
        tuple(result for result in results if isinstance(result, tuple)),
    )
    report_skipped(index.skipped)
    if not index.files:
        raise ValueError(
            f"{folder} holds no readable video or photo ({len(index.skipped)} unreadable); "
            f"known suffixes are {' '.join(CLIP_SUFFIXES)}"
        )
    if path is not None:
        index.save(path)
    return index


def read_index(path: str | Path) -> list[ClipFile]:
    """The rows of a `clips.parquet`; none of one that an earlier version wrote, which is made anew.

    Raises:
        ValueError: if it is not such a file.
    """
    try:
        version = (pq.read_schema(path).metadata or {}).get(b"autogaze_index")
        rows = pq.read_table(path, schema=_SCHEMA).to_pylist() if version == VERSION else []
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise ValueError(f"{path} is not an index of clips: {error}; delete it to make a new one") from error
    return [ClipFile(**row) for row in rows]


def report_skipped(skipped: tuple[tuple[str, str], ...]) -> None:
    """Say which files were left out, each by name."""
    for name, reason in skipped:
        log.warning("skipped %s: %s", shown(name), reason)
    if skipped:
        log.warning("%d files cannot be read and were left out", len(skipped))


def _known(folder: Path, name: str, known: dict[str, ClipFile]) -> ClipFile | None:
    file = known.get(name)
    try:
        return file if file and (file.size_bytes, file.changed_ns) == clip_state(folder, name) else None
    except OSError:
        return None  # `_describe` says why


def _describe(folder: Path, name: str) -> ClipFile | tuple[str, str]:
    try:
        unfit = why_no_clip_name(Path(name))
        if unfit:
            raise ValueError(unfit)
        with clip_path(folder, name) as path:
            info, photo = probe(path), is_photo(locate(path))
            frames = 1 if photo else count_frames(path)
            digest = content_hash(path)
        size, changed = clip_state(folder, name)
    except (ValueError, OSError) as error:
        return name, str(error)
    return ClipFile(
        name,
        "photo" if photo else "video",
        split_of(name, digest),
        frames,
        0.0 if photo else info.fps,
        0.0 if photo else frames / info.fps,
        info.width,
        info.height,
        size,
        changed,
        digest,
    )


def split_of(name: str, digest: str) -> str:
    """The split that a folder's name says, else one by content."""
    for part in Path(name).parts[:-1]:
        if part.lower() in SPLITS:
            return part.lower()
    share = int(digest[:8], 16) / 0x1_0000_0000
    return "train" if share < 0.9 else "val" if share < 0.95 else "test"
