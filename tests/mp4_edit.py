"""Edit MP4 files, for cases that are hard to write."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from autogaze.media.video import read_video


def rotate_clockwise(path: Path) -> None:
    """Mark the picture to be shown turned by 90 degrees, as phones do."""
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40  # version 0: flags, times, id, duration, reserved, layer, group, volume
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def vary_frame_rate(path: Path, durations: list[tuple[int, float]]) -> None:
    """Show the frames for runs of (frames, seconds each)."""
    seconds = [each for count, each in durations for _ in range(count)]
    frames = read_video(path).frames
    assert len(frames) == len(seconds)
    with av.open(str(path), "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=10, options={"crf": "10"})
        stream.width, stream.height, stream.time_base = frames.shape[2], frames.shape[1], Fraction(1, 1000)
        stream.codec_context.time_base = Fraction(1, 1000)
        for frame, start in zip(frames, np.cumsum([0, *seconds]), strict=False):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = round(start * 1000), Fraction(1, 1000)
            file.mux(stream.encode(picture))
        file.mux(stream.encode(None))


def forget_codec(path: Path) -> None:
    """Name a codec that nobody has."""
    head, moov, tail = path.read_bytes().rpartition(b"moov")
    path.write_bytes(head + moov + tail.replace(b"avc1", b"zzzz").replace(b"avcC", b"free"))
