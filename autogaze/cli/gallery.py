"""`autogaze gallery VIDEO... --out DIR`: where the gaze goes, at a glance.

Leaves <name>.png of every video (frames below one another: the frame, the chosen patches, what was looked at) and
contact-sheet.png, a row a video with the chosen patches over time. Colours are those of the scales.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from autogaze.checkpoint import DEFAULT_CHECKPOINT
from autogaze.cli.outputs import VIDEO_HELP, folder_name, open_all
from autogaze.core.gaze import Gaze
from autogaze.core.grid import PatchGrid
from autogaze.core.overlay import Overlay
from autogaze.device import pick_device
from autogaze.evaluate.clips import pick_frames
from autogaze.evaluate.disturbances import noise
from autogaze.files import atomic_path, check_folder
from autogaze.media.clip_files import SHEET, shown
from autogaze.media.preprocess import Preprocessor
from autogaze.media.video import VideoInfo, count_frames, read_frames
from autogaze.model import AutoGaze
from autogaze.selectors import SELECTORS, make_selector

SHEET_PX, STILL_PX = 192, 320  # longer side of a panel
CAPTION_PX = 22


@dataclass(frozen=True)
class GalleryEntry:
    """One video of the gallery, as drawn."""

    name: str
    frames: int
    ratio: float  # share of patches chosen
    counts: tuple[int, ...]  # patches of every frame


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("video", nargs="+", help=VIDEO_HELP)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write pictures to")
    parser.add_argument(
        "--checkpoint",
        default=DEFAULT_CHECKPOINT,
        metavar="X",
        help=f"shipped name, folder, run, hub id, or a selector's name (default {DEFAULT_CHECKPOINT})",
    )
    parser.add_argument(
        "--gazing-ratio", type=float, default=0.1, metavar="R", help="largest share of a frame's patches (default 0.1)"
    )
    parser.add_argument(
        "--task-loss-requirement",
        type=float,
        metavar="L",
        help="reconstruction loss at which a frame may stop (default: never)",
    )
    parser.add_argument("--frames", type=int, default=16, help="frames gazed at, evenly over the video (default 16)")
    parser.add_argument(
        "--noise", type=float, default=0.0, metavar="SIGMA", help="sensor noise to add first, of 255 (default none)"
    )
    parser.add_argument("--stills", type=int, default=6, help="frames drawn (default 6)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: a GPU if there is one)")
    parser.add_argument("--json", action="store_true", help="print what was drawn as JSON on the last line of stdout")


def run(args: argparse.Namespace) -> int:
    if args.frames < 1 or args.stills < 1:
        raise ValueError(f"frames and stills must be positive, got {args.frames} and {args.stills}")
    if args.noise < 0:
        raise ValueError(f"noise must not be negative, got {args.noise:g}")
    args.out = check_folder(args.out)
    infos = open_all(args.video)
    choose, preprocessor = _chooser(args)
    entries, rows = [], []
    for info, name in zip(infos, picture_names(infos), strict=True):
        clip = read_frames(info.path, pick_frames(count_frames(info.path), args.frames, None)).frames
        if args.noise:
            clip = noise(torch.from_numpy(clip), args.noise, torch.Generator().manual_seed(0)).numpy()
        gaze = choose(preprocessor(torch.from_numpy(clip).to(pick_device(args.device))))
        entry, sheet_row = draw_clip(name, clip, gaze, args.out, args.stills)
        entries.append(entry)
        rows.append(sheet_row)
        print(f"{shown(name)}: {entry.ratio:.1%} of the patches", file=sys.stderr)
    _write(args.out / SHEET, contact_sheet(rows))
    if args.json:
        print(json.dumps({"out": str(args.out), "videos": [asdict(entry) for entry in entries]}))
    return 0


def picture_names(infos: Sequence[VideoInfo]) -> list[str]:
    """A name of its own for every video's picture: numbered where names repeat, and never that of the sheet."""
    names: list[str] = []
    taken = {Path(SHEET).stem}
    for info in infos:
        name = folder_name(info.path)
        free = next(n for k in count(1) if (n := name if k == 1 else f"{name}-{k}").lower() not in taken)
        taken.add(free.lower())
        names.append(free)
    return names


def draw_clip(name: str, clip: np.ndarray, gaze: Gaze, out: Path, stills: int) -> tuple[GalleryEntry, np.ndarray]:
    """Write NAME.png and return what was drawn with the clip's row of the contact sheet.

    Args:
        name: of the picture.
        clip: (T, H, W, 3) uint8.
        gaze: of one clip, (1, T, K).
        out: folder.
        stills: frames to draw, evenly over the clip.
    """
    masks = gaze.patch_mask()[0].cpu().numpy()
    counts, total = masks.sum(1), masks.shape[1]
    shown = pick_frames(len(clip), min(stills, len(clip)), None)
    large, small = (Overlay(gaze.grid, clip.shape[1:3], panel_px) for panel_px in (STILL_PX, SHEET_PX))
    _write(
        out / f"{name}.png",
        np.concatenate([large.draw(clip[t], masks[t], f"frame {t}: {counts[t]} of {total} patches") for t in shown]),
    )
    text = f"{name}: {masks.mean():.1%}; patches {' '.join(str(counts[t]) for t in shown)}"
    row = _sheet_row(text, [small.chosen(clip[t], masks[t]) for t in shown])
    return GalleryEntry(name, len(clip), float(masks.mean()), tuple(counts.tolist())), row


def _chooser(args: argparse.Namespace) -> tuple[Callable[[Tensor], Gaze], Preprocessor]:
    """A model or a selector as a function, and the preprocessing that it expects."""
    if args.checkpoint not in SELECTORS:
        model = AutoGaze.from_pretrained(args.checkpoint, pick_device(args.device))
        return lambda video: model.generate(video, args.gazing_ratio, args.task_loss_requirement), model.preprocessor
    if args.task_loss_requirement is not None:
        raise ValueError(f"the selector {args.checkpoint} has no task loss requirement; leave it out")
    select = make_selector(args.checkpoint, PatchGrid())
    return lambda video: select(video, args.gazing_ratio, torch.Generator().manual_seed(0)), Preprocessor()


def contact_sheet(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of different widths below one another on white."""
    width = max(row.shape[1] for row in rows)
    return np.concatenate([_pad(row, bottom=6, right=width - row.shape[1]) for row in rows])


def _sheet_row(text: str, panels: Sequence[np.ndarray]) -> np.ndarray:
    row = np.concatenate([_pad(panel, right=4) for panel in panels], axis=1)
    strip = np.full((CAPTION_PX, row.shape[1], 3), 255, np.uint8)
    cv2.putText(strip, text, (4, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (30, 30, 30), 1, cv2.LINE_AA)
    return np.concatenate([strip, row])


def _pad(picture: np.ndarray, bottom: int = 0, right: int = 0) -> np.ndarray:
    return np.pad(picture, ((0, bottom), (0, right), (0, 0)), constant_values=255)


def _write(path: Path, picture: np.ndarray) -> None:
    with atomic_path(path) as temporary:
        if not cv2.imwrite(str(temporary), picture[..., ::-1]):
            raise ValueError(f"{path} cannot be written as a picture")
