"""What a video file says about its own length, so that a truncated copy is refused instead of read as a shorter clip.

Decoders stop quietly at the end of a truncated file. MP4/MOV boxes, the Matroska/WebM segment and AVI's RIFF chunks
declare their sizes: a declared end beyond the end of the file means that a part is missing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"uuid", b"moof", b"mfra", b"sidx", b"styp", b"pdin"}
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def looks_like_text(path: Path) -> bool:
    """Whether the file begins as text: FFmpeg would render it as a picture of its letters, or follow a playlist."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head or head.startswith(b"YUV4MPEG2"):
        return False
    return all(byte >= 32 or byte in b"\t\r\n\f\x1b" for byte in head) and _is_utf8(head)


def missing_bytes(path: Path) -> int:
    """How many bytes the container declares beyond the end of the file: 0 if whole, or if it does not say."""
    length = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        file.seek(0)
        if head[4:8] in _BOXES:
            end = _end_of_boxes(file, length)
        elif head[:4] == b"RIFF":
            end = _end_of_riff(file, length)
        elif head[:4] == _EBML:
            end = _end_of_segment(file)
        else:
            end = 0
    return max(0, end - length)


def _end_of_boxes(file: BinaryIO, length: int) -> int:
    end = 0
    while end + 8 <= length:
        file.seek(end)
        head = file.read(16)
        size = int.from_bytes(head[:4], "big")
        if head[4:8] not in _BOXES or size == 0:  # 0: to the end of the file; unknown: bytes that are no box
            return end
        end += int.from_bytes(head[8:16], "big") if size == 1 else size
    return end


def _end_of_riff(file: BinaryIO, length: int) -> int:
    end = 0
    while end + 8 <= length:  # files over 1 GiB hold several
        file.seek(end)
        head = file.read(8)
        if head[:4] != b"RIFF":
            return end
        end += 8 + int.from_bytes(head[4:], "little")
    return end


def _end_of_segment(file: BinaryIO) -> int:
    file.seek(4)
    size = _read_size(file)
    if size is None:
        return 0
    file.seek(size, os.SEEK_CUR)
    if file.read(4) != _SEGMENT:
        return 0
    size = _read_size(file)
    return 0 if size is None else file.tell() + size  # None: recorded live, of unknown length


def _read_size(file: BinaryIO) -> int | None:
    """EBML's number of variable length; None for "unknown"."""
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    width = 9 - first[0].bit_length()
    value = int.from_bytes(first + file.read(width - 1), "big") & ((1 << 7 * width) - 1)
    return None if value == (1 << 7 * width) - 1 else value


def _is_utf8(data: bytes) -> bool:
    try:
        data[:-4].decode("utf-8")  # the last character may be cut
    except UnicodeDecodeError:
        return False
    return True
