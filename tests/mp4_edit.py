"""Edit MP4 files that OpenCV wrote (moov last), for cases that OpenCV cannot write itself."""

from __future__ import annotations

import struct
from pathlib import Path

PARENTS = (b"moov", b"trak", b"mdia", b"minf", b"stbl")


def rotate_clockwise(path: Path) -> None:
    """Mark the picture to be shown turned by 90 degrees, as phones do."""
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40  # version 0: flags, times, id, duration, reserved, layer, group, volume
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def vary_frame_rate(path: Path, durations: list[tuple[int, int]]) -> None:
    """Replace the frame durations by runs of (frames, ticks)."""
    data = bytearray(path.read_bytes().replace(b"edts", b"free"))  # the edit list would cut at the old length
    start = data.index(b"stts") - 4
    old = struct.unpack(">I", data[start : start + 4])[0]
    body = struct.pack(">II", 0, len(durations)) + b"".join(struct.pack(">II", *run) for run in durations)
    box = struct.pack(">I", 8 + len(body)) + b"stts" + body
    data[start : start + old] = box
    for name in PARENTS:
        place = data.index(name) - 4
        size = struct.unpack(">I", data[place : place + 4])[0] + len(box) - old
        data[place : place + 4] = struct.pack(">I", size)
    path.write_bytes(data)


def forget_codec(path: Path) -> None:
    """Name a codec that nobody has."""
    head, moov, tail = path.read_bytes().rpartition(b"moov")
    path.write_bytes(head + moov + tail.replace(b"mp4v", b"zzzz").replace(b"esds", b"free"))
