"""The small copy of a video that `report.html` carries: made while the video is looked at, not by reading it again.

H.264, which browsers play and which is encoded ten times faster than VP8. A long video is shown in steps: every
`stride`-th frame. Where a reconstructor is there, the right half of each frame is what it made of the gaze.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from autogaze.core.gaze import Gaze
from autogaze.media.video import FrameChunk, read_chunks
from autogaze.media.writer import VideoWriter

MOST_FRAMES = 900  # shown; a minute at 15 a second
MOST_VIDEO_BYTES = 9_000_000  # 12 MB in base64, of the 15 MB that a report may have
MOST_MASK_BYTES = 1_500_000
LONG_SIDE_PX = 640
LEAST_PX = 16  # a block of the codec
BYTES_PER_PIXEL = 0.07  # what the codec comes to on busy videos
CONTEXT_FRAMES = 8  # that came before are shown to a reconstructor with the next ones
SLOWEST_FPS = 8.0  # a film of hours is shown as a time lapse

Rebuild = Callable[[np.ndarray, Gaze], tuple[np.ndarray, np.ndarray]]  # frames (T, H, W, 3), gaze -> frames, loss (T,)


@dataclass(frozen=True, eq=False)
class Shown:
    """The frames of the video that the page shows, and their size."""

    stride: int
    size: tuple[int, int]  # (width, height) in pixels
    fps: float


def choose_shown(
    frames: int, patches: int, frame_size: tuple[int, int], fps: float, halves: int, most: int | None = None
) -> Shown:
    """Choose what to show of so many frames (height, width) with so many patches each, in `halves` side by side."""
    most = most or most_shown(patches)
    stride = -(-frames // most)
    height, width = frame_size
    pixels = MOST_VIDEO_BYTES / BYTES_PER_PIXEL / -(-frames // stride) / halves
    factor = min(LONG_SIDE_PX / max(width, height), (pixels / (width * height)) ** 0.5, 1.0)
    size = (_even(width * factor), _even(height * factor))
    return Shown(stride, size, max(SLOWEST_FPS if stride > 1 else 1.0, fps / stride))


def most_shown(patches: int) -> int:
    """Most frames that a page shows, with so many patches each."""
    return max(1, min(MOST_FRAMES, MOST_MASK_BYTES // -(-patches // 8)))


class SmallCopy:
    """Takes a video's frames as they come and keeps those that are shown, in a file in a scratch folder.

    Args:
        scratch: a folder that the caller removes.
        shown: by how many frames there will be, as far as that is known: if more come, every second one is dropped.
        most: frames shown at most twice as many of.
        rebuild: a reconstructor's pictures and losses.
    """

    def __init__(self, scratch: Path, shown: Shown, most: int, rebuild: Rebuild | None = None) -> None:
        self.shown, self.most, self.rebuild = shown, most, rebuild
        self.losses: list[float] = []
        self._path = scratch / "clip.mp4"
        self._writer = VideoWriter(self._path, shown.fps)
        self._before: FrameChunk | None = None
        self._count = 0

    def add(self, chunk: FrameChunk, gaze: Callable[[int, int], Gaze]) -> None:
        """The next frames; `gaze(first, stop)` is what was chosen in frames of the video, from the ones before on."""
        for picture, loss in self._pictures(chunk, gaze):
            self._writer.write(picture)
            self._count += 1
            self.losses += [] if loss is None else [round(float(loss), 5)]
        if self._count >= 2 * self.most:
            self._thin()

    def finish(self) -> bytes:
        """The file, small enough for a page."""
        self._writer.close()
        while self._path.stat().st_size > MOST_VIDEO_BYTES:
            share = 0.95 * (MOST_VIDEO_BYTES / self._path.stat().st_size) ** 0.5
            self._copy(1, share)
        return self._path.read_bytes()

    def close(self) -> None:
        """Let go of the file, also half written."""
        self._writer.close()

    def _pictures(
        self, chunk: FrameChunk, gaze: Callable[[int, int], Gaze]
    ) -> Iterator[tuple[np.ndarray, float | None]]:
        wanted = [t for t in range(len(chunk)) if (chunk.first + t) % self.shown.stride == 0]
        if self.rebuild is None:
            yield from ((_small(chunk.frames[t], self.shown.size), None) for t in wanted)
            return
        before = self._before
        frames = chunk.frames if before is None else np.concatenate([before.frames, chunk.frames])
        first = chunk.first if before is None else before.first
        rebuilt, loss = self.rebuild(frames, gaze(first, first + len(frames)))
        for t in wanted:
            k = chunk.first - first + t
            pair = [_small(frames[k], self.shown.size), _small(rebuilt[k], self.shown.size)]
            yield np.concatenate(pair, 1), loss[k]
        kept = slice(max(0, len(chunk) - CONTEXT_FRAMES), None)
        self._before = FrameChunk(chunk.frames[kept].copy(), chunk.times_s[kept], chunk.first + (kept.start or 0))

    def _thin(self) -> None:
        """Keep every second frame: the video is longer than its container says."""
        self._writer.close()
        self.shown = replace(self.shown, stride=2 * self.shown.stride, fps=max(SLOWEST_FPS, self.shown.fps / 2))
        self.losses = self.losses[::2]
        self._copy(2, 1.0, keep_open=True)

    def _copy(self, stride: int, share: float, keep_open: bool = False) -> None:
        """Write the copy again: fewer frames, or smaller ones; looking and rebuilding are not done again for it."""
        target = self._path.with_name(f"{self._path.stem}-again.mp4")
        self._writer, self._count = VideoWriter(target, self.shown.fps), 0
        for chunk in read_chunks(self._path, stride=stride):
            for frame in chunk.frames:
                self._writer.write(_small(frame, (_even(frame.shape[1] * share), _even(frame.shape[0] * share))))
                self._count += 1
        self._path = target
        if not keep_open:
            self._writer.close()


def copy_of(
    video: str | Path, scratch: Path, shown: Shown, most: int, gaze: Callable[[int, int], Gaze], rebuild: Rebuild | None
) -> SmallCopy:
    """A small copy of a file that was looked at before."""
    copy = SmallCopy(scratch, shown, most, rebuild)
    for chunk in read_chunks(video, None if rebuild is None else CONTEXT_FRAMES):
        copy.add(chunk, gaze)
    return copy


def _even(side: float) -> int:
    return max(LEAST_PX, round(side / 2) * 2)


def _small(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
