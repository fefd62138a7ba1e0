"""The stop rule under two calibrations: what was asked, what was reached, and the least that would have done.

    python -m benchmarks.calibration --checkpoint autogaze-base --data VIDEOS/test --before OLD/config.json \\
        --out benchmarks/results/FILE.json

Every video of the folder is one clip. "after" is the calibration that is stored in the checkpoint, "before" that of
another config.json, or none; to make one: `autogaze calibrate`. Writes the JSON and, beside it, a
plot; the JSON is also the last line of stdout.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from autogaze.checkpoint import config_from_published
from autogaze.cli.evaluate import sampling_in_words
from autogaze.evaluate.clips import load_clips
from autogaze.evaluate.evaluation import load_reconstructor
from autogaze.files import atomic_path, write_json
from autogaze.model import AutoGaze
from autogaze.pretrain.judge import make_judge
from autogaze.stop_rule.calibration import SLACK
from autogaze.stop_rule.check import StopCheck, check_stops, smallest_ratios, useful_requirements
from benchmarks.timing import machine

PROMISED_KEPT, PROMISED_EXCESS = 0.9, 0.15
COLOURS = {"before": "#D55E00", "after": "#0072B2"}  # Okabe and Ito


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = AutoGaze.from_pretrained(args.checkpoint, device=device).eval()
    judge = make_judge(args.judge, lambda: load_reconstructor(args.reconstructor), model.preprocessor).to(device)
    clips = read(args.data, model, args, device)
    calibrations = {"before": stored(args.before) if args.before else (), "after": model.config.calibration}
    asked = args.asked or useful_requirements(model, judge, clips, args.points)
    least = smallest_ratios(model, judge, clips, asked)
    checks = {
        name: check_stops(model.with_calibration(pairs), judge, clips, asked, least)
        for name, pairs in calibrations.items()
    }
    for name, rows in checks.items():
        for row in rows:
            print(f"{name}: {row}", file=sys.stderr)
    result = {
        "what": "calibration",
        "machine": machine(),
        "clips": sum(map(len, clips)),
        "frames": args.frames,
        "sampling": sampling_in_words(args.stride),
        "data": args.data.name,
        "slack": SLACK,
        "calibrations": calibrations,
        "summary": {name: summary(rows) for name, rows in checks.items()},
        "checks": {name: [asdict(row) for row in rows] for name, rows in checks.items()},
    }
    if args.out is not None:
        draw(checks, args.out.with_suffix(".png"))
        write_json(args.out, result)
    print(json.dumps(result))
    return 0


def stored(config: Path) -> tuple[tuple[float, float], ...]:
    """The calibration in a config.json."""
    return config_from_published(json.loads(config.read_text(encoding="utf-8")), config).calibration


def read(folder: Path, model: AutoGaze, args: argparse.Namespace, device: torch.device) -> list[Tensor]:
    """Batches (B, T, 3, H, W) of the videos of a folder."""
    clips = load_clips(folder, model.grid, model.preprocessor, args.frames, args.stride, args.clips)
    return [video for _, video in clips.batches(args.batch_clips, device)]


def summary(rows: Sequence[StopCheck]) -> dict[str, float | None]:
    """The two promises over all requirements at which frames stop: the worst of each."""
    fired = [row for row in rows if row.kept is not None]
    excess = [row.ratio / row.smallest_ratio - 1 for row in fired if row.smallest_ratio > 0]
    return {
        "lowest_kept": min((row.kept for row in fired if row.kept is not None), default=None),
        "most_excess": max(excess, default=None),
        "mean_excess": sum(excess) / len(excess) if excess else None,
    }


def draw(checks: dict[str, list[StopCheck]], path: Path) -> None:
    """Share of kept stops, and ratio beside the least that would have done, against what was asked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, rows in checks.items():
        fired = [row for row in rows if row.kept is not None]
        left.plot([row.asked for row in fired], [row.kept for row in fired], "o-", color=COLOURS[name], label=name)
        right.plot([row.asked for row in rows], [row.ratio for row in rows], "o-", color=COLOURS[name], label=name)
    rows = checks["after"]
    right.plot([row.asked for row in rows], [row.smallest_ratio for row in rows], "k--", label="least that would do")
    left.axhline(PROMISED_KEPT, color="#666666", linewidth=1, linestyle=":")
    left.set(ylabel=f"stops whose loss is <= {SLACK} x asked", ylim=(0, 1.02))
    right.set(ylabel="mean share of patches", ylim=(0, None))
    for axes in (left, right):
        axes.set(xlabel="loss asked for")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibration", description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", required=True, help="a run, a folder, or a shipped name")
    parser.add_argument(
        "--judge", default="reconstructor", metavar="TERMS", help="reconstructor, features:MODEL, l1, or a weighted sum"
    )
    parser.add_argument("--reconstructor", help="folder of the judge (default: the shipped one)")
    parser.add_argument("--data", required=True, type=Path, help="folder of videos to check on")
    parser.add_argument("--before", type=Path, help="config.json to compare with (default: no calibration)")
    parser.add_argument("--asked", type=float, nargs="+", help="losses to ask for (default: over the useful range)")
    parser.add_argument("--points", type=int, default=8, help="losses to ask for, if they are not named (default 8)")
    parser.add_argument("--clips", type=int, help="use only so many videos of a folder")
    parser.add_argument("--frames", type=int, default=16, help="frames a clip (default 16)")
    parser.add_argument("--stride", type=int, help="take every STRIDE-th frame (default: evenly over the clip)")
    parser.add_argument("--batch-clips", type=int, default=16, help="clips a pass (default 16)")
    parser.add_argument("--device", help="cpu or cuda; by default cuda where there is one")
    parser.add_argument("--out", type=Path, help="write the JSON here, and the plot beside it")
    return parser


if __name__ == "__main__":
    sys.exit(main())
