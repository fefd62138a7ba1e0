"""The stop rule before and after calibration: what was asked, what was reached, and the least that would have done.

    python -m benchmarks.calibration --checkpoint RUN/model --reconstructor RUN/reconstructor --data VIDEOS/test \\
        --out benchmarks/results/FILE.json

Every video of the folder is one clip. `--calibrate-on VIDEOS/val` fits the calibration first; otherwise the one that is
stored in the checkpoint is judged. Writes the JSON and, beside it, a plot; the JSON is also the last line of stdout.
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

from autogaze.evaluate.clips import load_clips
from autogaze.files import atomic_path, write_json
from autogaze.model import AutoGaze
from autogaze.pretrain.calibration import SLACK, calibrate
from autogaze.pretrain.calibration_check import StopCheck, check_stops, useful_requirements
from autogaze.pretrain.judge import Judge
from autogaze.pretrain.reconstructor import Reconstructor
from benchmarks.timing import machine

PROMISED_KEPT, PROMISED_EXCESS = 0.9, 0.15
COLOURS = {"before": "#D55E00", "after": "#0072B2"}  # Okabe and Ito


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = AutoGaze.from_pretrained(args.checkpoint, device=device).eval()
    judge = Judge(Reconstructor.from_pretrained(args.reconstructor, device))
    clips = read(args.data, model, args, device)
    if args.calibrate_on is not None:
        calibrate(model, judge, read(args.calibrate_on, model, args, device))
    calibration = model.config.calibration
    asked = args.asked or useful_requirements(model, judge, clips)
    checks = {"before": check_stops(model.with_calibration(()), judge, clips, asked)}
    checks["after"] = check_stops(model.with_calibration(calibration), judge, clips, asked)
    for name, rows in checks.items():
        for row in rows:
            print(f"{name}: {row}", file=sys.stderr)
    result = {"what": "calibration", "machine": machine(), "clips": sum(map(len, clips)), "frames": args.frames,
              "data": args.data.name, "calibrated": bool(calibration), "slack": SLACK,
              "summary": {name: summary(rows) for name, rows in checks.items()},
              "checks": {name: [asdict(row) for row in rows] for name, rows in checks.items()}}
    if args.out is not None:
        draw(checks, args.out.with_suffix(".png"))
        write_json(args.out, result)
    print(json.dumps(result))
    return 0


def read(folder: Path, model: AutoGaze, args: argparse.Namespace, device: torch.device) -> list[Tensor]:
    """Batches (B, T, 3, H, W) of the videos of a folder."""
    clips = load_clips(folder, model.grid, model.preprocessor, args.frames, args.stride, args.clips)
    return [video for _, video in clips.batches(args.batch_clips, device)]


def summary(rows: Sequence[StopCheck]) -> dict[str, float | None]:
    """The two promises over all requirements at which frames stop: the worst of each."""
    fired = [row for row in rows if row.kept is not None]
    excess = [row.ratio / row.smallest_ratio - 1 for row in fired if row.smallest_ratio > 0]
    return {"lowest_kept": min((row.kept for row in fired if row.kept is not None), default=None),
            "most_excess": max(excess, default=None), "mean_excess": sum(excess) / len(excess) if excess else None}


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
        axes.set(xlabel="reconstruction loss asked for")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibration", description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", required=True, help="a run, a folder, or a shipped name")
    parser.add_argument("--reconstructor", required=True, type=Path, help="folder of the judge")
    parser.add_argument("--data", required=True, type=Path, help="folder of videos to check on")
    parser.add_argument("--calibrate-on", type=Path, help="folder of other videos to fit the calibration on first")
    parser.add_argument("--asked", type=float, nargs="+", help="losses to ask for (default: 8 over the useful range)")
    parser.add_argument("--clips", type=int, help="use only so many videos of a folder")
    parser.add_argument("--frames", type=int, default=16, help="frames a clip (default 16)")
    parser.add_argument("--stride", type=int, default=1, help="from frame to frame (default 1, as in training)")
    parser.add_argument("--batch-clips", type=int, default=16, help="clips a pass (default 16)")
    parser.add_argument("--device", help="cpu or cuda; by default cuda where there is one")
    parser.add_argument("--out", type=Path, help="write the JSON here, and the plot beside it")
    return parser


if __name__ == "__main__":
    sys.exit(main())
