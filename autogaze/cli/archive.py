"""`autogaze gaze FOLDER|LIST.txt|PATTERN --out DIR`: the command line of `autogaze.archive`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from autogaze.archive import (
    FORMATS,
    SETTINGS,
    ArchiveSettings,
    gaze_archive,
    is_archive,
    list_videos,
    write_parquet,
)
from autogaze.checkpoint import SHIPPED_RECONSTRUCTOR, find
from autogaze.cli.outputs import folder_name, output_folders
from autogaze.core.tiling import check_stride
from autogaze.decoding.limits import DEFAULT, Default
from autogaze.device import pick_device
from autogaze.gaze_video import (
    GazeOptions,
    find_reconstructor,
    gaze_video,
    load_rebuild,
)
from autogaze.media.video import probe
from autogaze.model import AutoGaze


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("archives", "a folder, a list of paths (.txt) or a quoted pattern as VIDEO")
    group.add_argument(
        "--format", choices=FORMATS, default="folder", help="a folder a video, or one Parquet dataset (default folder)"
    )
    group.add_argument(
        "--devices", type=int, default=1, metavar="N", help="processes, one a GPU where there are GPUs (default 1)"
    )


def wanted(args: argparse.Namespace) -> bool:
    """Whether the arguments of `autogaze gaze` mean an archive."""
    return args.format != "folder" or args.devices != 1 or is_archive(args.video)


def run(args: argparse.Namespace) -> int:
    check_stride(args.gaze_stride, args.tiles)
    devices = pick_devices(args.device, args.devices)
    given = [os.fspath(word) for word in args.video]
    videos = sorted({path for word in given for path in _videos(word)})
    out = args.out.expanduser()
    if args.format == "parquet":
        result = gaze_archive(videos, out, settings_of(args), write_parquet, devices)
    else:
        result = gaze_archive(videos, out, settings_of(args), write_folder, devices, folders)
    for name, reason in result.skipped:
        print(f"skipped {name}: {reason}", file=sys.stderr)
    print(result.line(args.out), file=sys.stderr)
    if args.json:
        print(json.dumps({**asdict(result), "out": str(args.out)}))
    return 0


def settings_of(args: argparse.Namespace) -> ArchiveSettings:
    """Settings that every result shares, with the checkpoint's defaults written out."""
    options = GazeOptions.of(AutoGaze.from_pretrained(args.checkpoint, "cpu").config, *given(args))
    more: dict[str, Any] = {}
    if args.format == "folder":
        judge = args.reconstructor or find_reconstructor(args.checkpoint)
        if judge is None and args.reconstruct:
            judge = find(SHIPPED_RECONSTRUCTOR)
        more = {"pictures": not args.no_overlay, "reconstructor": None if judge is None else str(judge)}
    return ArchiveSettings(
        str(args.checkpoint),
        options.gazing_ratio,
        options.task_loss_requirement,
        args.tiles,
        args.gaze_stride,
        args.format,
        more,
    )


def given(args: argparse.Namespace) -> tuple[float | Default, float | Default]:
    """The ratio and the requirement of a command line; an option that was left out is the default."""
    ratio, requirement = args.gazing_ratio, args.task_loss_requirement
    return DEFAULT if ratio is None else ratio, DEFAULT if requirement is None else requirement


def pick_devices(name: str, count: int) -> list[str]:
    """A device for each process.

    Raises:
        ValueError: if there are fewer GPUs, or one is named and several are asked for.
    """
    if count < 1:
        raise ValueError(f"--devices must be positive, got {count}")
    first = pick_device(name)
    if first.type == "cpu" or count == 1:
        return [str(first)] * count
    if first.index is not None:
        raise ValueError(f"--devices {count} takes the first GPUs: leave --device {name} out")
    if count > torch.cuda.device_count():
        raise ValueError(f"--devices {count}: {torch.cuda.device_count()} CUDA devices are visible")
    return [f"cuda:{number}" for number in range(count)]


def write_folder(model: AutoGaze, video: Path, target: Path, settings: ArchiveSettings) -> None:
    """Write the folder that `autogaze gaze` makes for one video."""
    options = GazeOptions(settings.gazing_ratio, settings.task_loss_requirement, settings.tiles, settings.gaze_stride)
    judge, pictures = settings.more["reconstructor"], settings.more["pictures"]
    rebuild = load_rebuild(Path(judge), model) if judge and pictures else None
    gaze_video(model, probe(video), target, options, settings.checkpoint, rebuild, pictures)


def folders(videos: Sequence[Path], out: Path) -> list[Path]:
    """A folder a video below `out`, also where there is one video."""
    return output_folders(videos, out) if len(videos) != 1 else [out / folder_name(videos[0])]


def kept(args: argparse.Namespace, command: str) -> str:
    """A line on the results that an interrupted archive keeps; empty for single videos."""
    if not (args.out / SETTINGS).is_file():
        return ""
    return f"what is done is kept in {args.out}; go on with the same command: {command}"


def _videos(word: str) -> list[Path]:
    path = Path(word).expanduser()
    return list_videos(word) if path.is_dir() or is_archive([word]) else [path]
