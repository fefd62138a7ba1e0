"""An archive: thousands of videos, one result each. What is done is not done again; what is bad is named and left out.

    OUT/_archive.json        the settings, which a later call must share
    OUT/_skipped.csv         files that could not be read, with the reason
    OUT/<id>.parquet         with --format parquet: the rows of one video; the folder is one dataset of
                             file, frame, time_s, ids, scales, predicted_loss
    OUT/<name of the video>/ with --format folder: what `autogaze gaze` leaves of one video

A result appears whole or not at all, so that what is there is done. Results carry the video's size and time of change:
a video that has changed since is done again.
"""

from __future__ import annotations

import csv
import glob
import hashlib
import json
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from autogaze.core.checks import check_options
from autogaze.core.gaze import Gaze
from autogaze.core.grid import PatchGrid
from autogaze.decoding.frames import FrameGazer
from autogaze.extras import explain
from autogaze.files import atomic_path, write_json
from autogaze.media.clip_files import SUMMARY, VIDEO_SUFFIXES, find_clips, listed_clips, shown
from autogaze.media.container import looks_like_text
from autogaze.media.video import read_chunks
from autogaze.model import AutoGaze
from autogaze.training.launch import launch

SETTINGS, SKIPPED = "_archive.json", "_skipped.csv"  # readers of datasets pass over such names
Format = Literal["folder", "parquet"]
FORMATS: tuple[Format, ...] = get_args(Format)
Write = Callable[[AutoGaze, Path, Path, "ArchiveSettings"], None]  # (model, video, result's path, settings)


@dataclass(frozen=True)
class ArchiveSettings:
    """Settings that every result of an archive shares."""

    checkpoint: str
    gazing_ratio: float
    task_loss_requirement: float | None = None
    tiles: bool = False
    gaze_stride: int = 1
    format: Format = "parquet"
    more: dict[str, Any] = field(default_factory=dict)  # settings of the command that only its own results depend on

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class ArchiveResult:
    """Counts of a finished call."""

    files: int
    done: int  # in this call
    there: int  # before it
    skipped: tuple[tuple[str, str], ...]  # (file, reason)

    def line(self, out: Path) -> str:
        """One line for people."""
        bad = f", {len(self.skipped)} could not be read, see {out / SKIPPED}" if self.skipped else ""
        return f"{self.files} videos: {self.done} done now, {self.there} before{bad} -> {out}"


def is_archive(words: Sequence[str | os.PathLike[str]]) -> bool:
    """Whether a command line means an archive: one word: a folder of several clips, a list of files, a pattern."""
    if len(words) != 1:
        return False
    word = Path(os.path.expanduser(words[0]))
    if words[0] and word.is_dir():
        return len(find_clips(word)) > 1
    is_list = word.suffix.lower() == ".txt" and (not word.is_file() or looks_like_text(word))
    return is_list or (not word.exists() and glob.has_magic(str(word)))


def list_videos(word: str | os.PathLike[str]) -> list[Path]:
    """The clips of a folder and its sub-folders, of a text file with a path a line, or of a pattern; sorted.

    Lines are relative to the list's folder; empty ones and those that begin with # are passed over.

    Raises:
        FileNotFoundError: if the folder or list does not exist.
        ValueError: if there is no clip in it.
    """
    path = Path(os.path.expanduser(word))
    if path.is_dir():
        found = find_clips(path)
    elif path.suffix.lower() == ".txt":
        found = listed_clips(path)
    else:
        names = [Path(name) for name in glob.glob(str(path), recursive=True)]
        found = [one for one in names if one.is_file() and one.suffix.lower() in VIDEO_SUFFIXES]
    if not found:
        what = "is a directory without a" if path.is_dir() else "names no"
        raise ValueError(f"{shown(path)} {what} readable video or photo")
    return sorted(set(found))


def gaze_archive(
    videos: Sequence[Path],
    out: Path,
    settings: ArchiveSettings,
    write: Write,
    devices: Sequence[str] = ("cpu",),
    folders: Callable[[Sequence[Path], Path], list[Path]] | None = None,
) -> ArchiveResult:
    """Gaze at every video that has no result yet, with one process a device.

    Args:
        videos: files.
        out: folder of results.
        settings: the same in every call with this folder.
        write: makes one result; a function of a module. `write_parquet` is one.
        devices: one process each; a device may stand there several times.
        folders: gives each video the folder of its result in `out`, the same ones in every call; None: Parquet.

    Raises:
        ValueError: if the folder holds results of other settings, or no video can be read.
    """
    goes_on = _keep_settings(out, settings)
    there = [video for video in videos if video.is_file()]
    targets = folders(there, out) if folders else [result_path(video, out) for video in there]
    todo = [
        (str(video), str(target))
        for video, target in zip(there, targets, strict=True)
        if not (goes_on and (target.is_file() or (target / SUMMARY).is_file()))
    ]
    context = multiprocessing.get_context("spawn")
    turn, done = context.Value("q", 0), context.Value("q", 0)
    skipped = out / SKIPPED
    skipped.unlink(missing_ok=True)  # what could not be read before is tried again
    for gone in (video for video in videos if not video.is_file()):
        _append(skipped, str(gone), "no such file")
    work = (todo, str(skipped), settings, write, tuple(devices), turn, done)
    if todo:
        with _bar(len(todo), done):
            if len(devices) == 1:
                work_off(*work)
            else:
                launch(work_off, len(devices), *work)
    bad = read_skipped(skipped)
    if len(bad) == len(videos):
        raise ValueError(f"none of {len(videos)} videos can be read, the first because: {bad[0][1]}")
    new = len(todo) - len(bad) + len(videos) - len(there)
    return ArchiveResult(len(videos), new, len(there) - len(todo), tuple(bad))


def work_off(
    todo: Sequence[tuple[str, str]],
    skipped: str,
    settings: ArchiveSettings,
    write: Write,
    devices: Sequence[str],
    turn: Any,
    done: Any,
) -> None:
    """One process: takes the next video in turn until there is none, on the device of its number."""
    device = devices[int(os.environ.get("RANK", 0)) if len(devices) > 1 else 0]
    model = AutoGaze.from_pretrained(settings.checkpoint, torch.device(device))
    while True:
        with turn.get_lock():
            number, turn.value = turn.value, turn.value + 1
        if number >= len(todo):
            return
        video, target = todo[number]
        try:
            write(model, Path(video), Path(target), settings)
        except (ValueError, OSError) as error:
            if isinstance(error, OSError) and not _is_about(error, video):
                raise  # a full disk or a folder that may not be written is no bad video
            _append(Path(skipped), video, str(error))
        with done.get_lock():
            done.value += 1


def write_parquet(model: AutoGaze, video: Path, target: Path, settings: ArchiveSettings) -> None:
    """Gaze at a video and write its rows."""
    import pyarrow.parquet as pq

    options = (settings.gazing_ratio, settings.task_loss_requirement, settings.tiles, settings.gaze_stride)
    gazer, writer, first = FrameGazer(model, *options), None, 0
    with atomic_path(target) as temporary:
        try:
            for chunk in read_chunks(video):
                gaze = gazer(chunk.frames).to("cpu")
                table = rows(str(video), gaze, chunk.times_s, first)
                first += len(chunk)
                if writer is None:
                    facts = {"autogaze": json.dumps({"grid": gaze.grid.to_dict(), **asdict(settings)})}
                    writer = pq.ParquetWriter(temporary, table.schema.with_metadata(facts), compression="zstd")
                writer.write_table(table)
        finally:
            if writer is not None:
                writer.close()


def rows(file: str, gaze: Gaze, times_s: np.ndarray, first: int = 0) -> Any:
    """A table with a row for each frame of one clip's gaze.

    Args:
        file: name that the rows carry.
        gaze: (1, T, K), on the CPU.
        times_s: (T,).
        first: number of the first frame.
    """
    import pyarrow as pa

    chosen, ids = gaze.chosen[0].numpy(), gaze.ids[0].numpy()
    offsets = np.concatenate([[0], chosen.sum(-1).cumsum()]).astype(np.int32)
    flat = ids[chosen].astype(np.int32)
    scales = scale_table(gaze.grid)[flat]
    frames = np.arange(first, first + len(times_s), dtype=np.int32)
    return pa.table(
        {
            "file": pa.array([file] * len(frames), pa.string()),
            "frame": frames,
            "time_s": np.asarray(times_s, np.float64),
            "ids": pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat)),
            "scales": pa.ListArray.from_arrays(pa.array(offsets), pa.array(scales)),
            "predicted_loss": pa.array(last_predicted_loss(gaze), pa.float32(), from_pandas=True),
        }
    )


@lru_cache(maxsize=8)
def scale_table(grid: PatchGrid) -> np.ndarray:
    """(patches_per_frame,) int16: the scale in pixels of every id."""
    return np.repeat(np.array(grid.scales, np.int16), grid.patches_per_scale)


def last_predicted_loss(gaze: Gaze) -> np.ndarray:
    """(T,) float32 of a single clip: the last loss that the model predicted in each frame; NaN where it did not."""
    frames = gaze.ids.shape[1]
    if gaze.task_loss is None or not gaze.ids.shape[2]:
        return np.full(frames, np.nan, np.float32)
    loss = gaze.task_loss[0].float().numpy()
    known = ~np.isnan(loss)
    last = loss.shape[1] - 1 - known[:, ::-1].argmax(1)
    return np.where(known.any(1), loss[np.arange(frames), last], np.nan).astype(np.float32)


def result_path(video: Path, out: Path) -> Path:
    """The Parquet file of a video; its name says which state of which file it is of."""
    stat = video.stat()
    state = f"{os.path.abspath(video)}\n{stat.st_size}\n{stat.st_mtime_ns}"
    return out / f"{hashlib.blake2b(os.fsencode(state), digest_size=12).hexdigest()}.parquet"


def read_skipped(path: Path) -> list[tuple[str, str]]:
    """The rows of a `_skipped.csv`; none if there is no such file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return [(row["file"], row["reason"]) for row in csv.DictReader(file)]


def _keep_settings(out: Path, settings: ArchiveSettings) -> bool:
    """Write the settings, or compare them with those of earlier calls; whether there were any."""
    if settings.format == "parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise explain(error, "--format parquet") from error
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} exists and is not a folder")
    path, wanted = out / SETTINGS, json.loads(json.dumps(asdict(settings)))
    if not path.is_file():
        if settings.format == "parquet" and out.exists() and any(out.iterdir()):
            raise ValueError(f"{out} exists and is no archive of this program: give another --out")
        write_json(path, wanted)
        return False
    there = json.loads(path.read_text(encoding="utf-8"))
    other = [key for key, value in wanted.items() if there.get(key) != value]
    if other:
        raise ValueError(
            f"{out} holds results with another {' and '.join(other)} ({there.get(other[0])}, "
            f"asked for {wanted[other[0]]}): give another --out"
        )
    return True


def _is_about(error: OSError, video: str) -> bool:
    """Whether an error is one of the video and not of where results go."""
    return error.filename is None or os.path.abspath(os.fsdecode(error.filename)) == os.path.abspath(video)


def _append(path: Path, video: str, reason: str) -> None:
    """One row; several processes append whole lines to one file."""
    with path.open("a", newline="", encoding="utf-8", errors="surrogateescape") as file:
        if file.tell() == 0:
            csv.writer(file).writerow(("file", "reason"))
        csv.writer(file).writerow((video, " ".join(reason.split())))


@contextmanager
def _bar(total: int, done: Any) -> Iterator[None]:
    """A progress bar with the time left, whichever process is at work; no bar without tqdm."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield
        return
    over = threading.Event()
    slow = 0.5 if sys.stderr.isatty() else 30.0  # a log file wants few lines
    with tqdm(total=total, unit="video", mininterval=slow, smoothing=0.05) as bar:

        def show() -> None:
            while not over.wait(0.5):
                bar.update(done.value - bar.n)

        thread = threading.Thread(target=show, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            bar.update(done.value - bar.n)
