"""Write a video that every browser plays: H.264 in MP4, VP8 in WebM; whole or not at all.

The encoders come with PyAV (libx264, libvpx), whatever OpenCV was built with. MP4 files have 4:2:0 colours and their
index at the front (faststart), so that playing begins before all of the file is there.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from autogaze.files import atomic_path
from autogaze.media.clip_files import VideoError

LEAST_FPS, MOST_FPS = 0.001, 1000.0
# encoding takes less time than drawing; browsers can seek. Two thirds of preset superfast's time at the same size: its
# entropy coder and B frames, which ultrafast leaves out, without its search
_H264 = {"preset": "ultrafast", "x264-params": "cabac=1:bframes=3:b-adapt=0", "crf": "22", "g": "48"}
_ENCODERS = {  # suffix: container, codec, its options
    ".mp4": ("mp4", "libx264", _H264),
    ".mov": ("mov", "libx264", _H264),
    ".mkv": ("matroska", "libx264", _H264),
    ".webm": ("webm", "libvpx", {"deadline": "realtime", "cpu-used": "8", "crf": "12", "b": "4M"}),
}


class VideoWriter:
    """RGB frames into a file, one after another. Use it through `open_writer`.

    Sides are made even by repeating the last row and column, since 4:2:0 colours need it.
    """

    def __init__(self, path: Path, fps: float) -> None:
        if not (math.isfinite(fps) and fps > 0):
            raise ValueError(f"fps must be positive, got {fps}")
        if path.suffix.lower() not in _ENCODERS:
            raise VideoError(f"cannot write {path.suffix or 'a name without a suffix'}: use {', '.join(_ENCODERS)}")
        self.path, self.fps = path, max(LEAST_FPS, min(fps, MOST_FPS))
        self.frames = 0  # written so far
        self._size: tuple[int, int] | None = None
        self._container: av.container.OutputContainer | None = None
        self._stream: av.VideoStream | None = None

    def write(self, frames: np.ndarray) -> None:
        """Append (T, H, W, 3) or (H, W, 3) uint8 RGB frames, all of one size."""
        for frame in frames[None] if frames.ndim == 3 else frames:
            if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
                raise ValueError(f"frames must be uint8 RGB (H, W, 3), got {frame.dtype} {frame.shape}")
            self._size = self._size or frame.shape[:2]
            if frame.shape[:2] != self._size:
                raise ValueError(f"every frame must be {self._size} pixels like the first, got {frame.shape[:2]}")
            if self._size[0] % 2 or self._size[1] % 2:
                frame = np.pad(frame, ((0, self._size[0] % 2), (0, self._size[1] % 2), (0, 0)), mode="edge")
            container, stream = self._container, self._stream
            if container is None or stream is None:  # the first frame
                container, stream = self._start(frame.shape[1], frame.shape[0])
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24").reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU601, dst_color_range=ColorRange.MPEG
            )
            picture.pts, picture.time_base = self.frames, 1 / stream.codec_context.framerate
            with self._failing():
                container.mux(stream.encode(picture))
            self.frames += 1

    def close(self) -> None:
        """Finish the file."""
        if self._container is None or self._stream is None:
            return
        container, stream = self._container, self._stream
        self._container = self._stream = None
        try:
            with self._failing():
                container.mux(stream.encode(None))
        finally:
            with self._failing():
                container.close()

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except av.FFmpegError as error:
            raise VideoError(f"{self.path} cannot be written: {error.strerror}; is the disk full?") from error

    def _start(self, width: int, height: int) -> tuple[av.container.OutputContainer, av.VideoStream]:
        form, codec, options = _ENCODERS[self.path.suffix.lower()]
        if codec not in av.codecs_available:
            raise VideoError(f"this PyAV cannot write {self.path.suffix} video (it has no {codec}); its wheels can")
        with self._failing():
            flags = {"movflags": "+faststart"} if form in ("mp4", "mov") else {}
            self._container = av.open(os.path.abspath(self.path), "w", format=form, options=flags)
            stream: Any = self._container.add_stream(
                codec, rate=Fraction(self.fps).limit_denominator(1001), options=options
            )
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.codec_context.color_range, stream.codec_context.colorspace = 1, 6  # limited, BT.601
        self._stream = stream
        return self._container, stream


@contextmanager
def open_writer(path: str | os.PathLike[str], fps: float) -> Iterator[VideoWriter]:
    """A writer whose file appears whole when the block ends, and not at all when it raises.

    Raises:
        ValueError: if no frame was written, or frames differ in size.
        VideoError: for an unknown suffix, or if the file cannot be written.
    """
    with atomic_path(path) as temporary:
        writer = VideoWriter(temporary, fps)
        try:
            yield writer
        finally:
            writer.close()
        if not writer.frames:
            raise ValueError(f"no frames were written to {path}")


def write_video(path: str | os.PathLike[str], frames: np.ndarray, fps: float = 25.0) -> None:
    """Write (T, H, W, 3) uint8 RGB frames to an .mp4 or .webm file, whole or not at all."""
    with open_writer(path, fps) as writer:
        writer.write(frames)
