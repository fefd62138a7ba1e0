"""Read and write video with OpenCV: whole or with a clear error, never silently another clip.

Reading streams chunks, so a film of hours takes the memory of a few frames. Frames come upright (a phone's rotation is
applied), each with its own time, so a variable frame rate stays what it is. Colours are RGB everywhere.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from autogaze.files import atomic_path
from autogaze.media.container import looks_like_text, missing_bytes

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # read at the first open: we say what is wrong, once
FRAMES_AT_ONCE = 16
BYTES_AT_ONCE = 128 << 20  # of decoded frames: 16 frames of 1080p, 5 of 4K
MP4_CODECS = ("avc1", "mp4v")  # H.264 where OpenCV was built with it, else MPEG-4
WEBM_CODECS = ("VP80",)
_QUIET = threading.Lock()  # file descriptor 2 belongs to all threads: one of them at a time turns it away


class VideoError(ValueError):
    """A file that cannot be read as the video it should be."""


@dataclass(frozen=True)
class VideoInfo:
    """What a file holds, as far as its header and its first frame tell."""

    path: Path
    width: int  # pixels, upright
    height: int
    fps: float  # frames a second, the average where it varies
    frames: int | None  # as the container says; None if it does not
    codec: str  # four characters

    @property
    def seconds(self) -> float | None:
        return None if self.frames is None else self.frames / self.fps


@dataclass(frozen=True, eq=False)
class FrameChunk:
    """Some consecutive frames of a video."""

    frames: np.ndarray  # (T, H, W, 3) uint8 RGB
    times_s: np.ndarray  # (T,) float64, seconds since the video's start
    first: int  # index of frames[0] among the frames read

    def __len__(self) -> int:
        return len(self.frames)


def probe(path: str | Path) -> VideoInfo:
    """Open a video, decode its first frame and say what it is.

    Raises:
        FileNotFoundError: if there is no such file.
        VideoError: if it is a directory, empty, truncated, not a video, or in a codec that OpenCV lacks here.
    """
    capture, info, _ = _open(Path(path), threads=1)
    capture.release()
    return info


def read_chunks(
    path: str | Path, size: int | None = None, start_s: float = 0.0, stride: int = 1, threads: int | None = None
) -> Iterator[FrameChunk]:
    """Decode a video chunk by chunk in constant memory.

    Args:
        path: any file that OpenCV reads.
        size: frames a chunk; by default 16, or fewer where 16 would need more than 128 MiB.
        start_s: seconds to skip; the first frame is the first one that is shown at that time or later.
        stride: keep every stride-th frame.
        threads: that decode; by default as many as there are cores, which is far too many for several videos at once.

    Raises:
        FileNotFoundError, VideoError: as `probe`; also a VideoError if no frame is left after `start_s`, or if the
            picture changes its size on the way.
    """
    if stride < 1 or (size is not None and size < 1) or start_s < 0:
        raise ValueError(f"stride and size must be positive and start_s not negative, got {stride}, {size}, {start_s}")
    info = probe(path)
    size = size or max(1, min(FRAMES_AT_ONCE, BYTES_AT_ONCE // (info.width * info.height * 3)))
    read, frames, times = 0, [], []
    for frame, time_s in _decode(info, start_s, stride, threads):
        frames.append(frame)
        times.append(time_s)
        if len(frames) == size:
            yield FrameChunk(np.stack(frames), np.array(times), read)
            read, frames, times = read + size, [], []
    if frames:
        yield FrameChunk(np.stack(frames), np.array(times), read)
    elif not read:
        raise VideoError(f"{path}: no frame at {start_s:g} s or later")


def read_video(
    path: str | Path, frames: int | None = None, start_s: float = 0.0, stride: int = 1, threads: int | None = None
) -> FrameChunk:
    """Decode (the first `frames` frames of) a video into memory; arguments and errors as `read_chunks`.

    A clip that ends early gives fewer frames: check `len` of the result.
    """
    if frames is not None and frames < 1:
        raise ValueError(f"frames must be positive, got {frames}")
    chunks = []
    for chunk in read_chunks(path, frames, start_s, stride, threads):
        chunks.append(chunk)
        if frames is not None:
            break
    return FrameChunk(np.concatenate([c.frames for c in chunks]), np.concatenate([c.times_s for c in chunks]), 0)


class VideoWriter:
    """RGB frames into an .mp4 or .webm file, one after another. Use it through `open_writer`.

    Sides are made even by repeating the last row and column, since codecs cut them otherwise.
    """

    def __init__(self, path: Path, fps: float) -> None:
        if not (math.isfinite(fps) and fps > 0):
            raise ValueError(f"fps must be positive, got {fps}")
        self.path, self.fps = path, min(fps, 1000.0)
        self.frames = 0  # written so far
        self._size: tuple[int, int] | None = None
        self._writer: cv2.VideoWriter | None = None

    def write(self, frames: np.ndarray) -> None:
        """Append (T, H, W, 3) or (H, W, 3) uint8 RGB frames, all of one size."""
        for frame in frames[None] if frames.ndim == 3 else frames:
            if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
                raise ValueError(f"frames must be uint8 RGB (H, W, 3), got {frame.dtype} {frame.shape}")
            self._size = self._size or frame.shape[:2]
            if frame.shape[:2] != self._size:
                raise ValueError(f"every frame must be {self._size} pixels like the first, got {frame.shape[:2]}")
            height, width = self._size
            even = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            self._writer = self._writer or self._start(even.shape[1], even.shape[0])
            self._writer.write(np.ascontiguousarray(even[..., ::-1]))
            self.frames += 1

    def close(self) -> None:
        if self._writer is not None:
            self._writer.release()

    def _start(self, width: int, height: int) -> cv2.VideoWriter:
        codecs = WEBM_CODECS if self.path.suffix == ".webm" else MP4_CODECS
        for codec in codecs:
            with _quiet():
                writer = cv2.VideoWriter(
                    str(self.path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), self.fps, (width, height)
                )
            if writer.isOpened():
                return writer
        raise VideoError(
            f"this OpenCV cannot write {self.path.suffix} video (tried {', '.join(codecs)}); "
            "the wheel opencv-python-headless can"
        )


@contextmanager
def open_writer(path: str | Path, fps: float) -> Iterator[VideoWriter]:
    """A writer whose file appears whole when the block ends, and not at all when it raises.

    Raises:
        ValueError: if no frame was written, or frames differ in size.
        VideoError: if this OpenCV has no codec for the suffix.
    """
    with atomic_path(path) as temporary:
        writer = VideoWriter(temporary, fps)
        try:
            yield writer
        finally:
            writer.close()
        if not writer.frames:
            raise ValueError(f"no frames were written to {path}")
        if (probe(temporary).frames or 0) < writer.frames:  # OpenCV does not tell when a write fails
            raise VideoError(f"{path}: not all of {writer.frames} frames could be written; is the disk full?")


def write_video(path: str | Path, frames: np.ndarray, fps: float = 25.0) -> None:
    """Write (T, H, W, 3) uint8 RGB frames to an .mp4 or .webm file, whole or not at all."""
    with open_writer(path, fps) as writer:
        writer.write(frames)


def _open(path: Path, threads: int | None) -> tuple[cv2.VideoCapture, VideoInfo, np.ndarray]:
    """An open capture past its first frame, what it is, and that frame (BGR)."""
    settings = [] if threads is None else [cv2.CAP_PROP_N_THREADS, threads]
    _check_file(path)
    with _quiet():
        capture = cv2.VideoCapture(os.path.abspath(path), cv2.CAP_FFMPEG, settings)
    if not capture.isOpened():
        raise VideoError(
            f"{path} is not a video that OpenCV can open: a damaged file, another format, or a codec "
            "that is not there; try converting it to H.264 in MP4"
        )
    codec = _fourcc(capture)
    good, frame = capture.read()
    if not good:
        raise VideoError(
            f"{path}: no frame can be decoded (codec {codec!r}): a damaged file, or a codec that OpenCV "
            "lacks here; try converting it to H.264 in MP4"
        )
    fps, count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
    info = VideoInfo(
        path,
        frame.shape[1],
        frame.shape[0],
        fps if math.isfinite(fps) and 0 < fps <= 1000 else 25.0,
        int(count) if math.isfinite(count) and 0 < count < 1e9 else None,
        codec,
    )
    return capture, info, frame


@contextmanager
def _quiet() -> Iterator[None]:
    """Without OpenCV's and FFmpeg's own words, some of which go straight to file descriptor 2; we report errors."""
    with _QUIET:
        level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(nothing)
            cv2.utils.logging.setLogLevel(level)


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise VideoError(f"{path} is a directory, expected a video file")
    if not path.exists():
        raise FileNotFoundError(f"no such video: {path}")
    if path.is_file():
        if path.stat().st_size == 0:
            raise VideoError(f"{path} is empty")
        if looks_like_text(path):
            raise VideoError(f"{path} is not a video: it is text")
        missing = missing_bytes(path)
        if missing:
            raise VideoError(f"{path} is truncated: {missing} bytes are missing at its end; copy or download it again")


def _fourcc(capture: cv2.VideoCapture) -> str:
    code = int(capture.get(cv2.CAP_PROP_FOURCC))
    return "".join(chr(byte) if 32 <= byte < 127 else "?" for byte in code.to_bytes(4, "little", signed=code < 0))


def _decode(info: VideoInfo, start_s: float, stride: int, threads: int | None) -> Iterator[tuple[np.ndarray, float]]:
    """RGB frames with their times."""
    frame: np.ndarray | None
    capture, _, frame = _open(info.path, threads)
    try:
        period_s, time_s, index = 1 / info.fps, capture.get(cv2.CAP_PROP_POS_MSEC) / 1000, 0
        if start_s > time_s + 1 and not _seek(capture, start_s - 1):
            capture.release()
            capture, _, frame = _open(info.path, threads)
        good, slack_s, last_s = True, period_s / 4, -math.inf
        while good:
            time_s = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            if not time_s > last_s:  # raw streams carry no times
                time_s = last_s + period_s if math.isfinite(last_s) else 0.0
            last_s = time_s
            if time_s >= start_s - slack_s:
                if index % stride == 0:
                    yield _rgb(capture, frame, info), time_s
                index += 1
            frame = None
            good = capture.grab()
    finally:
        capture.release()


def _rgb(capture: cv2.VideoCapture, frame: np.ndarray | None, info: VideoInfo) -> np.ndarray:
    if frame is None:
        good, frame = capture.retrieve()
        if not good:
            raise VideoError(f"{info.path}: a frame in the middle cannot be decoded; the file is damaged")
    assert frame is not None
    if frame.shape[:2] != (info.height, info.width):
        raise VideoError(
            f"{info.path}: the picture changes from {info.width} x {info.height} to "
            f"{frame.shape[1]} x {frame.shape[0]} pixels; cut the video there"
        )
    return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


def _seek(capture: cv2.VideoCapture, time_s: float) -> bool:
    """Jump to a frame at or before a time, if the file allows it; the frame is grabbed."""
    capture.set(cv2.CAP_PROP_POS_MSEC, max(0.0, time_s) * 1000)
    return bool(capture.grab()) and capture.get(cv2.CAP_PROP_POS_MSEC) / 1000 <= time_s + 1
