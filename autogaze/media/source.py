"""Sources of frames behind one protocol: files, photos, addresses, cameras and arrays.

A source gives chunks of consecutive frames. `prefetch` reads ahead in a thread, so that decoding (FFmpeg works outside
the interpreter's lock) goes on while a device chooses; `to_device` copies through pinned memory, so that the copy goes
on too. Memory stays bounded: a few chunks wait at most.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from typing import Literal, Protocol, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor

from autogaze.media.clip_files import VideoError
from autogaze.media.frames import as_clip
from autogaze.media.torchcodec import TorchcodecSource
from autogaze.media.video import FRAMES_AT_ONCE, FrameChunk, read_chunks

AHEAD = 2  # chunks that wait, decoded
VideoDecoder = Literal["ffmpeg", "torchcodec"]
DECODERS: tuple[VideoDecoder, ...] = get_args(VideoDecoder)

T = TypeVar("T")


class FrameSource(Protocol):
    """Frames of one size, in order, once."""

    def chunks(self) -> Iterator[FrameChunk]:
        """Some frames after others, (T, H, W, 3) uint8 RGB with their times in seconds.

        Raises:
            VideoError, FileNotFoundError: if the source cannot be read to its end.
        """
        ...


class FileSource:
    """A video, a photo or an address, as `read_chunks` reads it."""

    def __init__(self, path: str | os.PathLike[str], size: int | None = None, threads: int | None = None) -> None:
        self.path, self.size, self.threads = path, size, threads

    def chunks(self) -> Iterator[FrameChunk]:
        return read_chunks(self.path, self.size, threads=self.threads)


class ArraySource:
    """Frames that are in memory."""

    def __init__(self, frames: np.ndarray | Tensor, fps: float = 25.0, size: int = FRAMES_AT_ONCE) -> None:
        self.frames, self.fps, self.size = as_clip(frames), fps, size

    def chunks(self) -> Iterator[FrameChunk]:
        for first in range(0, len(self.frames), self.size):
            part = self.frames[first : first + self.size]
            yield FrameChunk(part.cpu().numpy(), np.arange(first, first + len(part)) / self.fps, first)


class CameraSource:
    """A camera by its number, through OpenCV; it never ends, and gives one frame at a time."""

    def __init__(self, number: int) -> None:
        self.number = number

    def chunks(self) -> Iterator[FrameChunk]:
        import cv2

        camera = cv2.VideoCapture(self.number)
        try:
            if not camera.isOpened():
                raise VideoError(f"there is no camera {self.number}, or it is in use")
            started, index = time.monotonic(), 0
            while camera.grab():
                good, frame = camera.retrieve()
                if not good:
                    break
                rgb = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
                yield FrameChunk(rgb[None], np.array([time.monotonic() - started]), index)
                index += 1
            raise VideoError(f"camera {self.number} stopped after {index} frames")
        finally:
            camera.release()


def open_source(
    source: str | os.PathLike[str] | int | np.ndarray | Tensor, decoder: VideoDecoder = "ffmpeg", device: str = "cpu"
) -> FrameSource:
    """The source that fits: a number is a camera, text is a file or an address, an array is itself.

    Args:
        source: see above.
        decoder: of files: "ffmpeg" (PyAV), or "torchcodec" (extra `video`).
        device: that torchcodec decodes on, "cpu" or "cuda".
    """
    if decoder not in DECODERS:
        raise ValueError(f"decoder must be one of {', '.join(DECODERS)}, got {decoder!r}")
    if isinstance(source, bool) or not isinstance(source, int | str | os.PathLike | np.ndarray | Tensor):
        raise ValueError(f"a source is a file, an address, a camera's number or frames, got {type(source).__name__}")
    if isinstance(source, int):
        return CameraSource(source)
    if isinstance(source, np.ndarray | Tensor):
        return ArraySource(source)
    if decoder == "torchcodec":
        return TorchcodecSource(source, device)
    return FileSource(source)


def prefetch(items: Iterable[T], ahead: int = AHEAD) -> Generator[T, None, None]:
    """The same items, made in a thread of their own, so many ahead. What the thread raises is raised here; when the
    generator is closed early, the thread ends too."""
    ready: queue.Queue[tuple[bool, T | BaseException | None]] = queue.Queue(ahead)
    stopped = threading.Event()

    def put(entry: tuple[bool, T | BaseException | None]) -> bool:
        while not stopped.is_set():
            try:
                ready.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        iterator = iter(items)
        try:
            for item in iterator:
                if not put((True, item)):
                    break
            put((False, None))
        except BaseException as error:  # handed over, and raised where the items are used
            put((False, error))
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()

    thread = threading.Thread(target=work, name="autogaze-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            more, item = ready.get()
            if not more:
                if isinstance(item, BaseException):
                    raise item
                return
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()


def to_device(frames: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """Frames on a device; to a GPU the copy does not wait."""
    tensor = torch.from_numpy(frames) if isinstance(frames, np.ndarray) else frames
    if device.type != "cuda" or tensor.device.type == "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
