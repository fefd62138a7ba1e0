"""Ablations: what each choice in the recipe is worth, in one table made from runs on disk.

    python -m benchmarks.ablations --data videos --split test --reconstructor RUN/reconstructor \\
        --run K:1=RUNS/k1 --run K:10=RUNS/k10 --run RL:with=RUNS/rl --run RL:without=RUNS/ntp --out FILE.json

A run is `AXIS:VALUE=CHECKPOINT`. Runs of one axis should differ in nothing else; each is compared with the first run of
its axis. All are judged by the same reconstructor at the same number of patches a frame (a model of one scale gets as
many patches, not as large a share), and timed for one clip. The axes asked for: K (ids a step: 1, 5, 10, 20), scales
(single, multi), RL (with, without), GRPO (biased as published, unbiased), labels (fast, exact).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from autogaze.device import pick_device
from autogaze.evaluate.bootstrap import Interval, bootstrap, ratio
from autogaze.evaluate.clips import load_clips
from autogaze.evaluate.evaluation import load_reconstructor
from autogaze.evaluate.measurement import Evaluator
from autogaze.evaluate.methods import model_method
from autogaze.evaluate.table import table
from autogaze.files import write_json, write_text
from autogaze.model import AutoGaze
from benchmarks.quality import machine, time_method

RATIOS = (0.05, 0.1)


@dataclass(frozen=True)
class Run:
    """One trained model and what distinguishes it."""

    axis: str
    value: str
    checkpoint: str


@dataclass(frozen=True)
class Ablation:
    """One line of the table."""

    axis: str
    value: str
    ids_a_step: int
    gazing_ratio: float
    loss: Interval
    over_first: Interval | None  # loss divided by that of the axis's first run; None for that run itself
    median_ms: float  # to choose for one clip


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    device = pick_device(args.device)
    reconstructor = load_reconstructor(args.reconstructor).to(device)
    clips = load_clips(
        args.data / args.split if args.split else args.data, reconstructor.grid, None, args.frames, None, args.limit
    )
    evaluator = Evaluator(reconstructor, clips, device, args.batch)
    lines = [
        line
        for axis in dict.fromkeys(run.axis for run in args.run)
        for line in ablate([run for run in args.run if run.axis == axis], evaluator, args.ratios)
    ]
    text = ablation_table(lines)
    if args.out is not None:
        write_json(
            args.out,
            {
                "what": "ablations",
                "machine": machine(device),
                "clips": len(clips),
                "frames": args.frames,
                "runs": [asdict(run) for run in args.run],
                "lines": [asdict(line) for line in lines],
            },
        )
        write_text(args.out.with_suffix(".md"), text)
    print(text)
    print(json.dumps({"lines": len(lines)}))
    return 0


def ablate(runs: Sequence[Run], evaluator: Evaluator, ratios: Sequence[float]) -> list[Ablation]:
    """Measure the runs of one axis."""
    lines = []
    first: dict[float, np.ndarray] = {}
    for run in runs:
        model = AutoGaze.from_pretrained(run.checkpoint, evaluator.device)
        method = model_method(f"{run.axis}:{run.value}", model, evaluator.reconstructor.grid)
        _, video = next(evaluator.clips.batches(1, evaluator.device))
        for gazing_ratio in ratios:
            loss = evaluator.measure(method, gazing_ratio).scores.loss
            over = (
                None
                if gazing_ratio not in first
                else bootstrap([loss, first[gazing_ratio]], evaluator.clips.groups, ratio)
            )
            first.setdefault(gazing_ratio, loss)
            lines.append(
                Ablation(
                    run.axis,
                    run.value,
                    model.config.num_multi_token_pred,
                    gazing_ratio,
                    bootstrap([loss], evaluator.clips.groups),
                    over,
                    time_method(method, video, gazing_ratio),
                )
            )
    return lines


def ablation_table(lines: Sequence[Ablation]) -> str:
    """Markdown."""
    return table(
        ["choice", "K", "ratio", "loss", "over the first of its kind", "ms a clip"],
        [
            [
                f"{line.axis}: {line.value}",
                line.ids_a_step,
                f"{line.gazing_ratio:g}",
                f"{line.loss.value:.4f} [{line.loss.low:.4f}, {line.loss.high:.4f}]",
                "" if line.over_first is None else str(line.over_first),
                f"{line.median_ms:.2f}",
            ]
            for line in lines
        ],
        "Ablations",
    )


def parse_run(text: str) -> Run:
    """ "K:10=runs/k10" as a run."""
    label, found, checkpoint = text.partition("=")
    axis, colon, value = label.partition(":")
    if not (found and colon and axis and value and checkpoint):
        raise argparse.ArgumentTypeError(f"a run is AXIS:VALUE=CHECKPOINT, got {text!r}")
    return Run(axis, value, checkpoint)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.ablations", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of videos")
    parser.add_argument("--split", default="test", help='sub-folder of --data; "" for the folder itself (default test)')
    parser.add_argument("--reconstructor", help="folder of the judge (default: the shipped one)")
    parser.add_argument("--run", action="append", type=parse_run, required=True, metavar="AXIS:VALUE=CHECKPOINT")
    parser.add_argument(
        "--ratios",
        type=lambda text: tuple(map(float, text.split(","))),
        default=RATIOS,
        help="gazing ratios (default 0.05,0.1)",
    )
    parser.add_argument("--frames", type=int, default=16, help="frames of every clip, evenly over it (default 16)")
    parser.add_argument("--limit", type=int, help="at most so many clips (default: all)")
    parser.add_argument("--batch", type=int, default=16, help="clips at once (default 16)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: a GPU if there is one)")
    parser.add_argument("--out", type=Path, help="JSON file; .md is written beside it")
    return parser


if __name__ == "__main__":
    sys.exit(main())
