"""Files are written whole or not at all: to a temporary name in the same folder, then renamed."""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_unfinished: set[Path] = set()  # temporary files of this process


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path that becomes `path` when the block ends, and vanishes when it raises.

    The name keeps the suffix (writers choose a format by it) and lies in the same folder (a rename within one
    file system cannot be seen half done). Missing parent folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem[:50]}.{secrets.token_hex(4)}{path.suffix}")  # a long name has no room
    _unfinished.add(temporary)  # before there is a file: a signal may end the process at any line
    try:
        temporary.touch(exist_ok=False)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is None and error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            error.filename = str(path)  # of a full disk the system tells no name
        raise
    finally:
        temporary.unlink(missing_ok=True)
        _unfinished.discard(temporary)


def check_folder(folder: Path) -> Path:
    """A folder that files can be written to, there or not, before any work is done for them; `~` is expanded.

    Raises:
        ValueError: if it is a file, or would lie in one.
    """
    folder = folder.expanduser()
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not there.is_dir():
        raise ValueError(f"{there} exists and is not a folder: nothing can be written to it")
    return folder


def remove_unfinished() -> None:
    """Delete the temporary files of writes that will never end, when the process is about to."""
    for temporary in tuple(_unfinished):
        temporary.unlink(missing_ok=True)


def read_text(path: str | os.PathLike[str]) -> str:
    """A UTF-8 text file, with or without a byte order mark.

    Raises:
        ValueError: if it is not UTF-8 text, naming it.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: byte {error.start} is no part of a character") from error


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, data: Any) -> None:
    """Write indented JSON whole or not at all."""
    write_text(path, json.dumps(data, indent=2) + "\n")
