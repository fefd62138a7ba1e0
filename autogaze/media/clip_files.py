"""Files of clips: the one list of suffixes, the one search of folders, the one check before a file is opened.

A suffix only says which files of a folder are taken. What a file is, its first bytes say: a photo is a photo under any
name (see `autogaze.media.photo`).
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from autogaze.files import read_text
from autogaze.media.container import looks_like_text, what_is_broken

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".flv", ".ts", ".m2ts", ".mts", ".mpg", ".mpeg", ".vob"),
    *(".wmv", ".asf", ".3gp", ".ogv", ".mxf", ".mjpeg", ".mjpg", ".h264", ".264", ".h265", ".265", ".y4m"),
    *(".gif", ".apng", ".3g2", ".f4v", ".qt", ".divx", ".ogm", ".m2v", ".mpe", ".dv", ".hevc"),
)
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".jfif", ".jpe", ".heic", ".heif")
CLIP_SUFFIXES = VIDEO_SUFFIXES + PHOTO_SUFFIXES
OVERLAY, ARRAYS, SUMMARY, REPORT = "overlay.mp4", "gaze.npz", "gaze.json", "report.html"  # what `autogaze gaze` writes
SHEET = "contact-sheet.png"  # what `autogaze gallery` writes beside its pictures
HASHED_BYTES = 1 << 20  # from the start and from the end of a file

_LFS = b"version https://git-lfs"
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")


class VideoError(ValueError):
    """A file that cannot be read as the video or photo it should be."""


def is_url(source: str | os.PathLike[str]) -> bool:
    """Whether a name is an address such as `rtsp://camera/stream` and not a file."""
    return isinstance(source, str) and _URL.match(source) is not None


def shown(path: str | os.PathLike[str]) -> str:
    """A name as text that can be printed in one line and written as UTF-8, whatever its bytes are."""
    text = os.fspath(path)
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "replace").decode() for char in _utf8(text)
    )


def find_clips(folder: str | os.PathLike[str], suffixes: tuple[str, ...] = CLIP_SUFFIXES) -> list[Path]:
    """Every video and photo below a folder, sorted by name.

    Links to folders are followed, once each. Names that start with a dot are passed over, and so is what this project
    wrote: the overlay in a folder with a `gaze.json`, the gallery's contact sheet. A folder below that may not be
    read is left out, by name on stderr.

    Raises:
        FileNotFoundError: if there is no such folder.
        PermissionError: if it may not be read.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {shown(folder)}" + (": it is a file" if folder.exists() else ""))
    return sorted(_walk(folder, suffixes), key=lambda path: path.relative_to(folder).as_posix())


def listed_clips(path: Path) -> list[Path]:
    """The clips that a text file names, a path a line, sorted; relative ones are relative to the file's folder.

    Empty lines and those that begin with # are passed over.

    Raises:
        ValueError: if it is not UTF-8 text.
    """
    lines = [line.strip() for line in read_text(path).splitlines()]
    return sorted({path.parent / os.path.expanduser(line) for line in lines if line and not line.startswith("#")})


def locate(source: str | os.PathLike[str]) -> Path:
    """The path of a clip that can be opened; `~` is expanded.

    Raises:
        FileNotFoundError: if there is no such file.
        VideoError: if it is a folder, a pipe or a device, empty, text, or its container is damaged or cut short.
    """
    if is_url(source):
        raise VideoError(f"{source} is an address, expected a file")
    if not os.fspath(source):
        raise VideoError("the name of the video is empty")
    path = Path(source)
    if not os.path.lexists(path):
        path = path.expanduser()
    name = shown(path)
    if not path.exists():
        if path.is_symlink():
            if _is_circle(path):
                raise VideoError(f"{name} is a link that leads back to itself")
            raise FileNotFoundError(
                f"no such video: {name} is a link to {shown(os.readlink(path))}, which is not there"
            )
        raise FileNotFoundError(f"no such video: {name}")
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise VideoError(f"{name} is a directory, expected a video file")
    if not stat.S_ISREG(mode):
        if stat.S_ISFIFO(mode):  # whoever waits for a reader of a named pipe goes on
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        kind = "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
        raise VideoError(f"{name} is {kind}, which cannot be read as a file; save the video to a file first")
    if path.stat().st_size == 0:
        raise VideoError(f"{name} is empty")
    if looks_like_text(path):
        with path.open("rb") as file:
            pointer = file.read(len(_LFS)) == _LFS
        what = (
            "a Git LFS pointer to a file that was not fetched: git lfs pull" if pointer else "not a video: it is text"
        )
        raise VideoError(f"{name} is {what}")
    broken = what_is_broken(path)
    if broken:
        raise VideoError(f"{name} is {broken}; copy or download it again")
    return path


def content_hash(source: str | os.PathLike[str]) -> str:
    """BLAKE2 of a file's size and of its first and last MiB; of an address itself."""
    if is_url(source):
        return hashlib.blake2b(os.fsencode(source), digest_size=16).hexdigest()
    size = os.stat(source).st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with open(source, "rb") as file:
        digest.update(file.read(HASHED_BYTES))
        file.seek(max(0, size - HASHED_BYTES))
        digest.update(file.read(HASHED_BYTES))
    return digest.hexdigest()


def why_no_clip_name(path: Path) -> str | None:
    """The reason why a file cannot be part of a data set, whose tables keep names as UTF-8; None if it can."""
    try:
        path.as_posix().encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8; rename it"
    return None


def _walk(folder: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    seen = {folder.resolve()}

    def unreadable(error: OSError) -> None:
        if error.filename == str(folder):
            raise error
        print(f"skipped {shown(error.filename)}: {error.strerror}", file=sys.stderr)

    for root, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        here = Path(root)
        folders[:] = [name for name in folders if not name.startswith(".") and _is_new(here / name, seen)]
        ours = {SHEET, OVERLAY} if SUMMARY in names else {SHEET}
        for name in names:
            path = here / name
            wanted = path.suffix.lower() in suffixes and not name.startswith(".") and name not in ours
            if wanted and (path.is_file() or path.is_symlink()):  # a link that leads nowhere is refused by name later
                yield path


def _is_circle(link: Path) -> bool:
    try:
        os.stat(link)
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def _is_new(folder: Path, seen: set[Path]) -> bool:
    if not folder.is_symlink():
        return True
    try:
        real = folder.resolve()
    except (OSError, RuntimeError):  # a loop of links
        return False
    if real in seen or any(real in known.parents for known in seen):  # the link leads back up
        return False
    seen.add(real)
    return True


def _utf8(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
