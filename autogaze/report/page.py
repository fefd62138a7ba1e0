"""`report.html`: one file that opens offline and shows a video's gaze frame by frame.

It holds a small VP8 copy of the video (the codec that both OpenCV's wheels write and browsers play), one bit for every
patch of every frame shown, and what the plots need. Long videos are shown in steps; the map counts every frame. Where a
reconstructor is there, the copy shows what it made of the gaze too, in its right half, and the plot shows its loss.
"""

from __future__ import annotations

import base64
import html
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from autogaze.core.gaze import Gaze
from autogaze.core.gaze_file import VideoGaze
from autogaze.files import write_text
from autogaze.media.video import FrameChunk, open_writer, read_chunks
from autogaze.report.break_even import ALIASES, PARTS_FILE, Parts, load_parts, will_it_pay
from autogaze.report.overlay import scale_colour

HERE = Path(__file__).parent
MOST_FRAMES = 900  # shown; a minute at 15 a second
MOST_VIDEO_BYTES = 9_000_000  # 12 MB in base64, of the 15 MB that a report may have
MOST_MASK_BYTES = 1_500_000
LONG_SIDE_PX = 640
LEAST_PX = 16  # VP8 has blocks of 16
BYTES_PER_PIXEL = 0.07  # what OpenCV's VP8 comes to on busy videos
CONTEXT_FRAMES = 8  # rebuilt at once, after as many that came before
SLOWEST_FPS = 8.0  # a film of hours is shown as a time lapse


@dataclass(frozen=True, eq=False)
class _Shown:
    """Which frames of the video the page shows, and how large."""

    stride: int
    size: tuple[int, int]  # (width, height) in pixels
    fps: float


Rebuild = Callable[[np.ndarray, Gaze], tuple[np.ndarray, np.ndarray]]  # frames (T, H, W, 3), gaze -> frames, loss (T,)


def write_report(
    path: str | Path, video: str | Path, gaze: VideoGaze, summary: dict[str, Any], rebuild: Rebuild | None = None
) -> None:
    """Write the page for a video whose gaze is known.

    Args:
        path: of the HTML file, written whole or not at all.
        video: the file that was looked at; it is read a second time.
        gaze: as `load_gaze` reads it.
        summary: the content of `gaze.json`.
        rebuild: what a reconstructor makes of some consecutive frames (T, H, W, 3) uint8 and their gaze: as many frames
            of one size, and the loss of each.
    """
    shown = _choose(gaze, summary["video"], halves=1 if rebuild is None else 2)
    clip, true_loss = _encode(Path(video), shown, gaze, rebuild)
    data = _data(gaze, summary, shown) | {"rebuilt": rebuild is not None, "true_loss": true_loss}
    data["savings"] = savings(summary["ratio"], load_parts()) if PARTS_FILE.is_file() else []
    page = (HERE / "page.html").read_text(encoding="utf-8")
    parts = {
        "TITLE": html.escape(str(summary["video"]["name"])),
        "STYLE": (HERE / "page.css").read_text(encoding="utf-8"),
        "DATA": json.dumps(data, allow_nan=False).replace("<", "\\u003c"),
        "CLIP": base64.b64encode(clip).decode("ascii"),
        "SCRIPT": (HERE / "page.js").read_text(encoding="utf-8"),
    }
    write_text(path, "".join(_fill(page, parts)))


def _fill(page: str, parts: dict[str, str]) -> Iterator[str]:
    """The template with every {{NAME}} replaced once; parts are never searched themselves."""
    for piece in page.split("{{"):
        name, closed, rest = piece.partition("}}")
        yield parts[name] + rest if closed else piece


def _choose(gaze: VideoGaze, video: dict[str, Any], halves: int) -> _Shown:
    frames = len(gaze.counts)
    most = max(1, min(MOST_FRAMES, MOST_MASK_BYTES // -(-gaze.grid.patches_per_frame // 8)))
    stride = -(-frames // most)
    shown = -(-frames // stride)
    width, height = video["width"], video["height"]
    pixels = MOST_VIDEO_BYTES / BYTES_PER_PIXEL / shown / halves
    factor = min(LONG_SIDE_PX / max(width, height), (pixels / (width * height)) ** 0.5, 1.0)
    size = (_even(width * factor), _even(height * factor))
    return _Shown(stride, size, max(SLOWEST_FPS if stride > 1 else 1.0, video["fps"] / stride))


def _encode(video: Path, shown: _Shown, gaze: VideoGaze, rebuild: Rebuild | None) -> tuple[bytes, list[float]]:
    """The small copy, and the loss of every frame shown."""
    losses: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "clip.webm"
        with open_writer(path, shown.fps) as writer:
            for picture, loss in _pictures(video, shown.stride, shown.size, gaze, rebuild):
                writer.write(picture)
                losses += [] if loss is None else [round(float(loss), 5)]
        while path.stat().st_size > MOST_VIDEO_BYTES:
            path = _shrink(path, shown.fps)
        return path.read_bytes(), losses


def _shrink(path: Path, fps: float) -> Path:
    """A copy that is expected to fit; looking and rebuilding are not done again for it."""
    share = 0.95 * (MOST_VIDEO_BYTES / path.stat().st_size) ** 0.5
    smaller = path.with_name(f"{path.stem}-smaller.webm")
    with open_writer(smaller, fps) as writer:
        for chunk in read_chunks(path):
            for frame in chunk.frames:
                writer.write(_small(frame, (_even(frame.shape[1] * share), _even(frame.shape[0] * share))))
    return smaller


def _pictures(
    video: Path, stride: int, size: tuple[int, int], gaze: VideoGaze, rebuild: Rebuild | None
) -> Iterator[tuple[np.ndarray, float | None]]:
    """The frames shown, small; with a reconstructor its picture beside each, and its loss."""
    if rebuild is None:
        for chunk in read_chunks(video, stride=stride):
            yield from ((_small(frame, size), None) for frame in chunk.frames)
        return
    before: FrameChunk | None = None  # a reconstructor is shown what came just before
    for chunk in read_chunks(video, CONTEXT_FRAMES):
        frames = chunk.frames if before is None else np.concatenate([before.frames, chunk.frames])
        first = chunk.first if before is None else before.first
        rebuilt, loss = rebuild(frames, gaze.gaze(first, first + len(frames)))
        for t, frame in enumerate(chunk.frames, len(frames) - len(chunk)):
            if (first + t) % stride == 0:
                yield np.concatenate([_small(frame, size), _small(rebuilt[t], size)], 1), loss[t]
        before = chunk


def _even(side: float) -> int:
    return max(LEAST_PX, round(side / 2) * 2)


def _small(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


def _data(gaze: VideoGaze, summary: dict[str, Any], shown: _Shown) -> dict[str, Any]:
    grid = gaze.grid
    starts = np.concatenate([[0], gaze.counts.cumsum()])
    frames = range(0, len(gaze.counts), shown.stride)
    masks = np.zeros((len(frames), grid.patches_per_frame), bool)
    for row, t in enumerate(frames):
        masks[row, gaze.ids[starts[t] : starts[t + 1]]] = True
    loss = gaze.last_loss()[:: shown.stride]
    scales = [
        {
            "px": scale,
            "colour": scale_colour(k),
            "rows": rows,
            "columns": columns,
            "first": grid.offsets[k],
            "cell": grid.tile_px / (scale // grid.patch_size),
        }
        for k, (scale, (rows, columns)) in enumerate(zip(grid.scales, grid.sides, strict=True))
    ]
    return {
        "summary": {key: value for key, value in summary.items() if key != "counts"},
        "width": grid.width_px,
        "height": grid.height_px,
        "patches": grid.patches_per_frame,
        "scales": scales,
        "fps": shown.fps,
        "stride": shown.stride,
        "frames": len(frames),
        "all_frames": len(gaze.counts),
        "times": [round(float(t), 3) for t in gaze.times_s[:: shown.stride]],
        "loss": [round(float(x), 5) if np.isfinite(x) else None for x in loss],
        "masks": _base64(np.packbits(masks, axis=1, bitorder="little")),
        "visits": _base64(gaze.visits().astype("<u4")),
    }


def savings(ratio: float, parts: Parts) -> list[dict[str, Any]]:
    """What measured ViTs take for 16 frames of 224 pixels, densely and with this ratio of patches, in milliseconds."""
    if not 0 < ratio <= 1:
        return []
    verdicts = [will_it_pay(alias, 224, 16, 1, ratio, parts) for alias, name in ALIASES.items() if name in parts.vits]
    return [
        {
            "vit": verdict.vit,
            "device": verdict.device,
            "dense": verdict.dense_ms,
            "gaze": verdict.gaze_ms,
            "encode": verdict.encode_ms,
        }
        for verdict in verdicts
    ]


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode("ascii")
