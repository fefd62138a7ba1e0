"""Read a video: whole or with a clear error, never silently another clip.

Reading streams chunks, so a film of hours takes the memory of a few frames. Frames come upright (a phone's rotation is
applied), each with its own time, counted from the first one, so a variable frame rate stays what it is. Colours are
RGB everywhere. A photo is a clip of one frame.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path

import av
import numpy as np

from autogaze.media.clip_files import VideoError, is_url, locate, shown
from autogaze.media.decoder import ONE_FRAME_A_PACKET, Decoder, VideoInfo, time_of
from autogaze.media.photo import is_photo, is_webp_animation, photo_format, read_animation, read_photo
from autogaze.media.writer import VideoWriter, open_writer, write_video  # noqa: F401 (one import for both)

FRAMES_AT_ONCE = 16
BYTES_AT_ONCE = 128 << 20  # of decoded frames: 16 frames of 1080p, 5 of 4K
PHOTO_FPS = 25.0
INDEXED = {"mov", "matroska", "avi", "flv", "gif", "apng"}  # containers that begin with what can be decoded
SEEKABLE = {"mov", "matroska"}  # whose packets carry the time of their frame
SEEK_FROM = 64  # frames; fewer are decoded faster than found

Timed = tuple[av.VideoFrame, float]  # a frame and its seconds since the first one


@dataclass(frozen=True, eq=False)
class FrameChunk:
    """Some consecutive frames of a video."""

    frames: np.ndarray  # (T, H, W, 3) uint8 RGB
    times_s: np.ndarray  # (T,) float64, seconds since the first frame
    first: int  # index of frames[0] among the frames read

    def __len__(self) -> int:
        return len(self.frames)


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Open a video, decode its first frame and say what it is.

    Raises:
        FileNotFoundError: if there is no such file.
        VideoError: if it is a directory or a pipe, empty, truncated, not a video, or in an unknown codec.
    """
    source = path if is_url(path) else locate(path)
    if not isinstance(source, str) and is_photo(Path(source)):
        height, width = read_photo(Path(source)).shape[:2]
        return VideoInfo(Path(source), width, height, PHOTO_FPS, 1, photo_format(Path(source)))
    if not isinstance(source, str) and is_webp_animation(Path(source)):
        facts = [(picture.shape, time_s) for picture, time_s in read_animation(Path(source))]
        (height, width, _), last_s = facts[0][0], facts[-1][1]
        fps = (len(facts) - 1) / last_s if last_s else PHOTO_FPS
        return VideoInfo(Path(source), width, height, fps, len(facts), "webp")
    with Decoder(source, threads=1) as decoder:
        return _describe(decoder, decoder.rgb(next(decoder.frames())).shape)


def read_chunks(
    path: str | os.PathLike[str],
    size: int | None = None,
    start_s: float = 0.0,
    stride: int = 1,
    threads: int | None = None,
) -> Iterator[FrameChunk]:
    """Decode a video chunk by chunk in constant memory.

    Args:
        path: a video, a photo, or the address of a stream.
        size: frames a chunk; by default 16, or fewer where 16 would need more than 128 MiB.
        start_s: seconds to skip; the first frame is the first one that is shown at that time or later.
        stride: keep every stride-th frame.
        threads: that decode; by default as many as there are cores, which is far too many for several videos at once.

    Raises:
        FileNotFoundError, VideoError: as `probe`; also a VideoError at damage, if no frame is left after `start_s`, or
            if the picture changes its size on the way.
    """
    if stride < 1 or (size is not None and size < 1) or start_s < 0:
        raise ValueError(f"stride and size must be positive and start_s not negative, got {stride}, {size}, {start_s}")
    read = 0
    times: list[float] = []
    frames = np.empty((0, 0, 0, 3), np.uint8)
    for picture, time_s in _pictures(path, start_s, stride, threads):
        if not times:
            height, width = picture.shape[:2]
            size = size or max(1, min(FRAMES_AT_ONCE, BYTES_AT_ONCE // (width * height * 3)))
            frames = np.empty((size, height, width, 3), np.uint8)
        frames[len(times)] = picture
        times.append(time_s)
        if len(times) == size:
            yield FrameChunk(frames, np.array(times), read)
            read, times = read + size, []
    if times:
        yield FrameChunk(frames[: len(times)], np.array(times), read)
    elif not read:
        raise VideoError(f"{shown(path)}: no frame at {start_s:g} s or later")


def read_video(
    path: str | os.PathLike[str],
    frames: int | None = None,
    start_s: float = 0.0,
    stride: int = 1,
    threads: int | None = None,
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


def count_frames(path: str | os.PathLike[str], threads: int | None = 1) -> int:
    """The number of frames that `read_chunks` gives, by counting: packets where each is one frame, else by decoding.

    A container's own count may be duration x rate, and a sound track that outlasts the pictures makes it wrong.
    """
    path = locate(path)
    if is_photo(path):
        return 1
    if is_webp_animation(path):
        return sum(1 for _ in read_animation(path))
    with Decoder(path, threads) as decoder:
        if decoder.codec in ONE_FRAME_A_PACKET and decoder.form.split(",")[0] in INDEXED:
            return sum(not packet.is_discard for packet in decoder.packets())
        return sum(1 for _ in decoder.frames())


def read_frames(
    path: str | os.PathLike[str],
    indices: Sequence[int],
    threads: int | None = 1,
    each: Callable[[np.ndarray], np.ndarray] = np.array,
) -> FrameChunk:
    """Some frames of a video by number, in memory for them alone.

    Args:
        path: a video or photo.
        indices: numbers of frames, from 0, ascending (repeats allowed).
        threads: that decode.
        each: what to keep of a frame (H, W, 3) uint8 as soon as it is decoded: a smaller one; all of it by default.

    Raises:
        FileNotFoundError, VideoError: as `read_chunks`; also a VideoError if the video has no such frame.
    """
    wanted = list(indices)
    if not wanted or wanted != sorted(wanted) or wanted[0] < 0:
        raise ValueError(f"indices must be ascending and not negative, got {wanted}")
    pictures: list[np.ndarray] = []
    times: list[float] = []
    for number, picture, time_s in _numbered(locate(path), wanted, threads):
        repeats = wanted.count(number)
        pictures += [each(picture)] * repeats if repeats else []
        times += [time_s] * repeats
        if number == wanted[-1]:
            return FrameChunk(np.stack(pictures), np.array(times), wanted[0])
    raise VideoError(f"{shown(path)} has fewer than {wanted[-1] + 1} frames")


def _describe(decoder: Decoder, shape: tuple[int, ...]) -> VideoInfo:
    return VideoInfo(decoder.source, shape[1], shape[0], decoder.fps, decoder.listed, decoder.codec)


def _pictures(
    path: str | os.PathLike[str], start_s: float, stride: int, threads: int | None
) -> Iterator[tuple[np.ndarray, float]]:
    """RGB frames from a time on, with their times."""
    source = path if is_url(path) else locate(path)
    if not isinstance(source, str) and is_photo(Path(source)):
        yield from [(read_photo(Path(source)), 0.0)][: int(start_s == 0)]
        return
    if not isinstance(source, str) and is_webp_animation(Path(source)):
        yield from islice((pair for pair in read_animation(Path(source)) if pair[1] >= start_s), 0, None, stride)
        return
    with Decoder(source, threads) as decoder:
        timed = _timed(decoder)
        first = next(timed)
        origin = time_of(first[0])
        if start_s > 0 and origin is not None and _preroll(decoder) < start_s:
            decoder.seek(origin + Fraction(start_s - _preroll(decoder)))
            timed = _timed(decoder, origin, entered=True)
            first = next(timed, (first[0], math.inf))
        if first[1] <= start_s:
            yield from _taken(decoder, chain([first], timed), start_s, stride)
            return
    with Decoder(source, threads) as decoder:  # one that cannot be entered in the middle
        yield from _taken(decoder, _timed(decoder), start_s, stride)


def _taken(decoder: Decoder, timed: Iterable[Timed], start_s: float, stride: int) -> Iterator[tuple[np.ndarray, float]]:
    slack_s, index = 0.25 / decoder.fps, 0
    for frame, time_s in timed:
        if time_s >= start_s - slack_s:
            if index % stride == 0:
                yield decoder.rgb(frame), time_s
            index += 1


def _timed(decoder: Decoder, origin: Fraction | None = None, entered: bool = False) -> Iterator[Timed]:
    """Frames with their seconds since the first one; a stream without times, or with times that repeat, goes on by its
    rate."""
    last_s: float | None = None
    for frame in decoder.frames(entered):
        time = time_of(frame)
        origin = time if origin is None else origin
        time_s = 0.0 if time is None or origin is None else float(time - origin)
        if last_s is not None and time_s <= last_s:
            time_s = last_s + 1 / decoder.fps
        last_s = time_s
        yield frame, time_s


def _preroll(decoder: Decoder) -> float:
    """Seconds to enter a stream early: frames are stored in another order than they are shown, and need their
    predecessors."""
    return max(1.0, 16 / decoder.fps)


def _numbered(path: Path, wanted: list[int], threads: int | None) -> Iterator[tuple[int, np.ndarray, float]]:
    """The wanted frames in RGB, with number and time."""
    first = wanted[0]
    if is_photo(path):
        yield 0, read_photo(path), 0.0
        return
    if is_webp_animation(path):
        yield from ((number, *pair) for number, pair in enumerate(read_animation(path)))
        return
    ticks = _ticks(path, path.stat().st_mtime_ns) if first > SEEK_FROM else ()
    with Decoder(path, threads) as decoder:
        if first < len(ticks):
            number_of = {tick: number for number, tick in enumerate(ticks)}
            base = decoder.tick
            decoder.seek(ticks[first] * base - Fraction(_preroll(decoder)))
            landed = False
            for frame in decoder.frames(entered=True):
                number = len(ticks) if frame.pts is None else number_of.get(frame.pts, len(ticks))
                if not landed and number > first:
                    break  # it cannot be entered in the middle
                landed = True
                if number in wanted:
                    yield number, decoder.rgb(frame), float((ticks[number] - ticks[0]) * base)
            if landed:
                return
    with Decoder(path, threads) as decoder:
        for number, (frame, time_s) in enumerate(_timed(decoder)):
            if number in wanted:
                yield number, decoder.rgb(frame), time_s


@lru_cache(maxsize=256)
def _ticks(path: Path, _changed_ns: int) -> tuple[int, ...]:
    """Times of the frames on the stream's clock, by reading the packets' headers; empty where they don't tell."""
    with Decoder(path, 1) as decoder:
        if decoder.codec not in ONE_FRAME_A_PACKET or decoder.form.split(",")[0] not in SEEKABLE:
            return ()
        ticks = [packet.pts for packet in decoder.packets() if not packet.is_discard]
    known = sorted({tick for tick in ticks if tick is not None})
    return tuple(known) if len(known) == len(ticks) else ()
