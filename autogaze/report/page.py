"""`report.html`: one file that opens offline and shows a video's gaze frame by frame.

It holds a small copy of the video, one bit for every patch of every frame shown, and what the plots need. Long videos
are shown in steps; the map counts every frame. Where a reconstructor is there, the copy shows what it made of the gaze
too, in its right half, and the plot shows its loss.
"""

from __future__ import annotations

import base64
import html
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from autogaze.core.gaze_file import VideoGaze
from autogaze.core.overlay import scale_colour
from autogaze.files import write_text
from autogaze.media.clip_files import shown as shown_name
from autogaze.report.break_even import ALIASES, PARTS_FILE, Parts, load_parts, will_it_pay
from autogaze.report.small_copy import Rebuild, Shown, SmallCopy, choose_shown, copy_of, most_shown

HERE = Path(__file__).parent


def write_report(
    path: str | Path,
    video: str | Path,
    gaze: VideoGaze,
    summary: dict[str, Any],
    rebuild: Rebuild | None = None,
    copy: SmallCopy | None = None,
) -> None:
    """Write the page for a video whose gaze is known.

    Args:
        path: of the HTML file, written whole or not at all.
        video: the file that was looked at; read again if there is no `copy`.
        gaze: as `load_gaze` reads it.
        summary: the content of `gaze.json`.
        rebuild: what a reconstructor makes of some consecutive frames (T, H, W, 3) uint8 and their gaze: as many frames
            of one size, and the loss of each.
        copy: that took the video's frames when they were looked at.
    """
    with tempfile.TemporaryDirectory() as scratch:
        if copy is None:
            patches, about = gaze.grid.patches_per_frame, summary["video"]
            size, halves = (about["height"], about["width"]), 1 if rebuild is None else 2
            shown = choose_shown(len(gaze.counts), patches, size, about["fps"], halves)
            copy = copy_of(video, Path(scratch), shown, most_shown(patches), gaze.gaze, rebuild)
        clip = copy.finish()
    data = _data(gaze, summary, copy.shown) | {"rebuilt": copy.rebuild is not None, "true_loss": copy.losses}
    data["savings"] = savings(summary["ratio"], load_parts()) if PARTS_FILE.is_file() else []
    page = (HERE / "page.html").read_text(encoding="utf-8")
    parts = {
        "TITLE": html.escape(shown_name(summary["video"]["name"])),
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


def _data(gaze: VideoGaze, summary: dict[str, Any], shown: Shown) -> dict[str, Any]:
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
    """Times of measured ViTs for 16 frames of 224 pixels, densely and with this ratio of patches, in milliseconds."""
    if not 0 < ratio <= 1:
        return []
    verdicts = {
        alias: will_it_pay(alias, 224, 16, 1, ratio, parts) for alias, name in ALIASES.items() if name in parts.vits
    }
    return [
        {
            "vit": alias.upper().replace("VIT", "ViT"),
            "device": verdict.device,
            "dense": verdict.dense_ms,
            "gaze": verdict.gaze_ms,
            "encode": verdict.encode_ms,
        }
        for alias, verdict in verdicts.items()
    ]


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode("ascii")
