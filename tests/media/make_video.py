"""Small videos in many containers and codecs, and stills with odd headers."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from autogaze.media.scenes import render_scene

KINDS = {  # suffix: codec, container, pixel format
    ".mp4": ("libx264", "mp4", "yuv420p"),
    ".mkv": ("libx264", "matroska", "yuv420p"),
    ".ts": ("libx264", "mpegts", "yuv420p"),
    ".flv": ("libx264", "flv", "yuv420p"),
    ".avi": ("mpeg4", "avi", "yuv420p"),
    ".webm": ("libvpx", "webm", "yuv420p"),
    ".mpg": ("mpeg2video", "mpeg", "yuv420p"),
    ".mjpeg": ("mjpeg", "mjpeg", "yuvj420p"),
    ".gif": ("gif", "gif", "rgb8"),
    ".apng": ("apng", "apng", "rgb24"),
    ".h264": ("libx264", "h264", "yuv420p"),
    ".y4m": ("wrapped_avframe", "yuv4mpegpipe", "yuv420p"),
    ".mov": ("mpeg4", "mov", "yuv420p"),
}


def scene(frames: int = 50) -> np.ndarray:
    """(T, 96, 128, 3) uint8: things that move."""
    return render_scene(3, frames, (96, 128), "handheld")


def encode(
    path: Path,
    frames: Iterable[np.ndarray],
    kind: str | None = None,
    fps: float = 25,
    times_s: Iterable[float] | None = None,
    **options: str,
) -> Path:
    """Write frames as the kind of file that the suffix (or `kind`) says; `options` are the container's."""
    codec, form, pixels = KINDS[kind or path.suffix]
    starts = list(times_s) if times_s is not None else None
    with av.open(str(path), "w", format=form, options=options) as file:
        stream = file.add_stream(codec, rate=Fraction(fps).limit_denominator(1000))
        stream.pix_fmt, stream.codec_context.gop_size = pixels, 12
        if codec == "libx264":
            stream.codec_context.thread_count = 1  # so that the bytes are the same wherever it runs
        for k, frame in enumerate(frames):
            if k == 0:
                stream.height, stream.width = frame.shape[:2]
                if starts is not None:
                    stream.codec_context.time_base = Fraction(1, 1000)
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            if starts is not None:
                picture.pts, picture.time_base = round(starts[k] * 1000), Fraction(1, 1000)
            file.mux(stream.encode(picture))
        file.mux(stream.encode(None))
    return path
