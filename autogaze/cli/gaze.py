"""`autogaze gaze VIDEO... --out DIR`: look at any video file and keep what was chosen.

One video leaves DIR/overlay.mp4 (H.264, which browsers play), gaze.npz, gaze.json and report.html; several leave them
in DIR/<name of the video>/. With `--no-overlay` nothing is drawn: gaze.npz and gaze.json alone. Files appear when a
video is done or not at all, and never in the place of another video's.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from autogaze.checkpoint import DEFAULT_CHECKPOINT, SHIPPED_RECONSTRUCTOR, find
from autogaze.cli import archive
from autogaze.cli.outputs import VIDEO_HELP, open_all, output_folders
from autogaze.core.tiling import check_stride, make_tiling
from autogaze.device import pick_device
from autogaze.gaze_video import (
    GazeOptions,
    find_reconstructor,
    gaze_video,
    load_rebuild,
)
from autogaze.model import AutoGaze
from autogaze.report.small_copy import Rebuild


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("video", nargs="+", help=VIDEO_HELP)
    parser.add_argument("--out", type=Path, default=Path("gaze-out"), help="folder to write to (default gaze-out)")
    parser.add_argument(
        "--checkpoint",
        default=DEFAULT_CHECKPOINT,
        metavar="X",
        help=f"shipped name, folder, run of autogaze train or hub id (default {DEFAULT_CHECKPOINT})",
    )
    parser.add_argument("--gazing-ratio", type=float, metavar="R", help="largest share of a frame's patches, 0 to 1")
    parser.add_argument(
        "--task-loss-requirement",
        type=float,
        metavar="L",
        help="reconstruction loss at which a frame may stop; if only one of the two is given the other "
        "sets no limit, if none is both are the checkpoint's",
    )
    parser.add_argument(
        "--tiles", action="store_true", help="look at full resolution in tiles (default: the whole frame in one square)"
    )
    parser.add_argument(
        "--gaze-stride",
        type=int,
        default=1,
        metavar="N",
        help="with --tiles: look with N times fewer pixels each way; there are about N * N times fewer "
        "tiles then, and patches are chosen in blocks of N x N (default 1)",
    )
    parser.add_argument(
        "--no-overlay",
        action="store_true",
        help="draw nothing: write gaze.npz and gaze.json, but no overlay and report",
    )
    parser.add_argument(
        "--reconstruct",
        action="store_true",
        help="show in the report what the shipped reconstructor makes of the gaze (slow on a CPU)",
    )
    parser.add_argument(
        "--reconstructor",
        type=Path,
        metavar="DIR",
        help="the same with this reconstructor (default: the run's own, if the checkpoint is a run)",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    parser.add_argument("--json", action="store_true", help="print the summaries as JSON on the last line of stdout")
    archive.add_arguments(parser)


kept = archive.kept


def run(args: argparse.Namespace) -> int:
    if archive.wanted(args):
        return archive.run(args)
    infos = open_all(args.video)
    check_stride(args.gaze_stride, args.tiles)
    folders = output_folders(infos, args.out)
    model = AutoGaze.from_pretrained(args.checkpoint, pick_device(args.device))
    options = GazeOptions.of(model.config, *archive.given(args), args.tiles, args.gaze_stride)
    for info in infos if args.tiles else ():
        make_tiling(model.grid, (info.height, info.width), gaze_stride=args.gaze_stride)  # a stride must fit them all
    rebuild = None if args.no_overlay else choose_rebuild(args, model)
    summaries = []
    for info, folder in zip(infos, folders, strict=True):
        summary = gaze_video(model, info, folder, options, str(args.checkpoint), rebuild, not args.no_overlay)
        print(summary.line(folder), file=sys.stderr)
        summaries.append(asdict(summary) | {"out": str(folder)})
    if args.json:
        print(json.dumps(summaries if len(summaries) > 1 else summaries[0]))
    return 0


def choose_rebuild(args: argparse.Namespace, model: AutoGaze) -> Rebuild | None:
    """The reconstructor that was asked for, or that a run left beside its model."""
    folder = args.reconstructor or find_reconstructor(args.checkpoint)
    if folder is None and args.reconstruct:
        folder = find(SHIPPED_RECONSTRUCTOR)
    return None if folder is None else load_rebuild(folder, model)
