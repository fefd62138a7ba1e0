"""`autogaze train`: from a folder of videos to a model."""

from __future__ import annotations

import argparse
import errno
import json
import sys
from contextlib import nullcontext
from pathlib import Path

from autogaze.files import check_folder
from autogaze.garbage import imports_kept, keeps_imports
from autogaze.training.recipes import CALIBRATE, PRESETS, STAGES, load_recipes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--stage",
        choices=("all", *STAGES, CALIBRATE),
        default="all",
        help="which stage to run, or calibrate: fit the stop rule of the newest model again and write "
        "RUN/model (default: all)",
    )
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        default="tiny",
        help="tiny: 2 CPU cores, about 5 minutes; base: the published size, a GPU (default: tiny)",
    )
    parser.add_argument("--config", type=Path, help="YAML recipe: flat for one stage, or one section a stage")
    parser.add_argument(
        "--data",
        help="folder of videos, photos and tar shards of them, flat or with train/ and val/, or a list of paths (.txt) "
        "(default: scenes rendered into the run)",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="go on where the run stopped, and skip finished stages")
    parser.add_argument("--algorithm", choices=("grpo", "ppo"), help="of the rl stage (default: grpo)")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON on the last line of stdout")
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="key=value",
        help="change a recipe: pretrain.learning_rate=1e-3, or max_minutes=5 for every stage",
    )


def run(args: argparse.Namespace) -> int:
    """Train; see `autogaze train --help`."""
    stages = STAGES if args.stage == "all" else (args.stage,)
    settings = list(args.settings)
    if args.algorithm:
        settings.append(f"rl.algorithm={args.algorithm}")
    if args.algorithm == "ppo":
        settings.insert(0, "rl.judge=reconstructor")  # the only one that PPO knows
    recipes = load_recipes(args.preset, args.config, settings, ("pretrain",) if stages == (CALIBRATE,) else stages)
    args.out = check_folder(args.out)
    with imports_kept() if keeps_imports() else nullcontext():
        from autogaze.pipeline import run as pipeline  # Lightning takes seconds to import: check the words first

    try:
        summary = pipeline.train(stages, recipes, args.data, args.out, args.resume)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ValueError(
            f"no space left on the disk of {args.out}: the last checkpoint is intact; make room and go on with --resume"
        ) from error
    if pipeline.rank() > 0:
        return 0
    if args.json:
        print(json.dumps(summary))
    else:
        print(f"run: {args.out}", file=sys.stderr)
    return 0


def kept(args: argparse.Namespace, command: str) -> str:
    """A line on what an interrupted run keeps, and the command that goes on from it."""
    files = [file for name in ("*/last.ckpt", "labels.shards/[0-9]*", "labels.parquet") for file in args.out.glob(name)]
    resume = command if args.resume else f"{command} --resume"
    if not files:
        return f"nothing was saved yet; start again with: {resume}"
    last = max(files, key=lambda file: file.stat().st_mtime_ns)
    saved = f"the last checkpoint is {last}" if last.suffix == ".ckpt" else f"labels so far are in {last}"
    return f"{saved}; go on with: {resume}"
