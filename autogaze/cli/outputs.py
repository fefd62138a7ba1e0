"""The videos that a command was given, and a folder for each one's results that holds nobody else's."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from autogaze.files import check_folder
from autogaze.media.clip_files import ARRAYS, OVERLAY, REPORT, SUMMARY, content_hash, find_clips, is_url, shown
from autogaze.media.video import VideoError, VideoInfo, probe

VIDEO_HELP = "a video, a photo, the address of a stream, or a folder of videos and photos"


def open_all(sources: Sequence[str]) -> list[VideoInfo]:
    """Facts about the named files; every file must be readable before work begins.

    A folder stands for the videos and photos below it; those that cannot be read are left out, by name.

    Raises:
        FileNotFoundError, VideoError: as `probe`; also a VideoError for a camera's number and an empty folder.
    """
    infos: list[VideoInfo] = []
    for source in sources:
        path = Path(source)
        folder = path if path.is_dir() else path.expanduser()
        if not source or is_url(source) or not folder.is_dir():
            if source.isdigit() and not path.exists():
                raise VideoError(f"{source} is no file: cameras are for Python, see examples/stream_camera.py")
            infos.append(probe(source))
            continue
        found = [info for info in map(_probed, find_clips(folder)) if info is not None]
        if not found:
            raise VideoError(f"{shown(folder)} is a directory without a readable video or photo")
        infos += found
    return infos


def output_folders(videos: Sequence[VideoInfo | Path], out: Path) -> list[Path]:
    """`out` itself for one video, else a folder a video, numbered where a name is taken.

    A folder is taken if it is another video's in this call, or holds the results of another video (by content) or
    files that are not ours. The same videos get the same folders again.

    Raises:
        ValueError: if `out` is a file, or one video's `out` is taken.
    """
    out = check_folder(out)
    paths = [video.path if isinstance(video, VideoInfo) else video for video in videos]
    if len(paths) == 1:
        other = holds_other(out, paths[0])
        if other:
            raise ValueError(f"{out} holds {other}; choose another --out")
        return [out]
    folders: list[Path] = []
    taken: set[str] = set()
    for path, name in zip(paths, map(folder_name, paths), strict=True):
        numbered = (name if k == 1 else f"{name}-{k}" for k in range(1, 10**6))
        free = next(n for n in numbered if n.lower() not in taken and not holds_other(out / n, path))
        taken.add(free.lower())
        folders.append(out / free)
    return folders


def folder_name(path: Path | str) -> str:
    """A video's name without its suffix, as the name of a folder."""
    name = path.stem if isinstance(path, Path) else Path(path.split("?")[0].rstrip("/").rsplit("/", 1)[-1]).stem
    return "video" if name.strip(". ") == "" else name


def holds_other(folder: Path, video: Path | str) -> str | None:
    """Whose results a folder holds, in words, if they are not this video's; None where writing loses nothing."""
    if not any((folder / name).exists() for name in (OVERLAY, ARRAYS, SUMMARY, REPORT)):
        return None
    try:
        about = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))["video"]
        known = about.get("hash")  # results of version 0.1 have none
        same = about["name"] == Path(video).name if known is None else known == content_hash(video)
        return None if same else f"the results of {shown(str(about['name']))}"
    except (OSError, ValueError, KeyError, TypeError):
        return "files of these names that are not results of `autogaze gaze`"


def _probed(path: Path) -> VideoInfo | None:
    try:
        return probe(path)
    except (ValueError, OSError) as error:
        print(f"skipped {shown(path)}: {error}", file=sys.stderr)
        return None
