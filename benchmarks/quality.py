"""Quality: what the gaze keeps of clips that training never saw, beside every selector and the greedy oracle.

    python -m benchmarks.quality --data videos --split test --checkpoint ntp=RUN --checkpoint rl=RUN \\
        --reconstructor RUN --out benchmarks/results/DATE-DEVICE-quality.json

One run measures everything: loss, PSNR, SSIM and paste-and-upsample at ratios 0.01 to 0.4, per kind of clip, with
bootstrapped confidence; requirement mode; the ratio needed for a loss; the time of every method; and whether the
project's goals are met. With --features MODEL also what pretrained ViTs see, of clean and of disturbed clips.
FILE.json holds all of it, FILE.md the tables, FILE.png and FILE-features.png the curves. Everything is float32
without TF32, but ViTs that judge (TF32) and the oracles' search (bfloat16). Frames are taken evenly over each clip
unless --stride is given.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from autogaze.cli.evaluate import add_feature_arguments, sampling_in_words, wanted_disturbances
from autogaze.device import pick_device
from autogaze.evaluate.bootstrap import Interval
from autogaze.evaluate.clips import load_clips
from autogaze.evaluate.evaluation import ORACLE_RATIOS, RATIOS, Plan, evaluate, load_reconstructor, load_viewers
from autogaze.evaluate.feature_summary import ALL, BASELINE, RATIO
from autogaze.evaluate.feature_table import feature_tables
from autogaze.evaluate.measurement import Evaluator
from autogaze.evaluate.methods import (
    FEATURE_ORACLE,
    NETWORK,
    ORACLE,
    RECONSTRUCTION_ORACLE,
    UNTRAINED,
    Method,
    known_methods,
    make_methods,
)
from autogaze.evaluate.plot import plot_features, plot_losses
from autogaze.evaluate.requirement import COMMON, OWN
from autogaze.evaluate.results import Results
from autogaze.evaluate.summary import LOSS_MINUS, LOSS_OVER, RANDOM, WAY
from autogaze.evaluate.table import markdown, table
from autogaze.files import write_text

TIMED_RATIO = 0.1
RUNS = 5
GOAL_RATIOS = (0.05, 0.1)
# patch tokens of the pasted picture: (disturbance, ratio): largest share of difference's distance
FEATURE_GOALS = {("clean", 0.05): 0.72, ("clean", 0.1): 0.55, ("noise-20", 0.05): 0.52, ("noise-20", 0.1): 0.48}
OVER_EARLIER = {0.05: 0.85, 0.1: 0.80}  # of the checkpoint before
ORACLES = (RECONSTRUCTION_ORACLE, FEATURE_ORACLE)  # one of them runs: the judge that is asked for has its own
MOST_OVER_RANDOM, MOST_OVER_BEST, LEAST_WAY, MOST_CCTV = 0.72, 0.88, 0.60, 0.03


@dataclass(frozen=True)
class Timing:
    """How long choosing takes, without reading or preprocessing the clips."""

    method: str
    gazing_ratio: float
    clips: int  # in the batch
    runs: int
    median_ms: float  # for the whole batch


@dataclass(frozen=True)
class Goal:
    """One thing that the shipped weights should reach."""

    name: str
    value: float | None  # None: it was not measured
    wanted: str
    met: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write, and say which goals are met; 0 whether they are or not."""
    args = _parser().parse_args(argv)
    begun = time.perf_counter()
    device = pick_device(args.device)
    reconstructor = load_reconstructor(args.reconstructor).to(device)
    viewers = load_viewers(args.features, device)
    against = args.against or [name for name in known_methods() if name != (ORACLES[0 if viewers else 1])]
    methods = make_methods(args.checkpoint, against, reconstructor, device, viewers[0].distance if viewers else None)
    folder = args.data / args.split if args.split else args.data
    preprocessor = next(method.model.preprocessor for method in methods if method.model is not None)
    clips = load_clips(folder, reconstructor.grid, preprocessor, args.frames, args.stride, args.limit)
    print(f"{len(clips)} clips read, {time.perf_counter() - begun:.0f} s", file=sys.stderr)
    plan = Plan(
        RATIOS,
        tuple(args.oracle_ratios),
        wanted_disturbances(args),
        tuple(args.disturbed_ratios),
        True,
        folder.name,
        sampling_in_words(args.stride),
    )
    evaluator = Evaluator(reconstructor, clips, device, args.batch)
    results = evaluate(methods, evaluator, plan, viewers)
    timings = time_methods(methods, evaluator) if args.time else []
    goals = check_goals(results) + check_feature_goals(results)
    text = "\n".join([goal_table(goals), markdown(results), feature_tables(results), time_table(timings)])
    more = {
        "what": "quality",
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(device),
        "command": "python -m benchmarks.quality " + " ".join(argv or sys.argv[1:]),
        "seconds": round(time.perf_counter() - begun, 1),
        "goals": [asdict(goal) for goal in goals],
        "timings": [asdict(timing) for timing in timings],
    }
    if args.out is not None:
        results.save(args.out, **more)
        write_text(args.out.with_suffix(".md"), text)
        plot_losses(results, args.out.with_suffix(".png"))
        if results.features:
            plot_features(results, args.out.with_name(f"{args.out.stem}-features.png"))
    print(text)
    print(json.dumps({"seconds": more["seconds"], "goals": more["goals"]}))
    return 0


def check_goals(results: Results) -> list[Goal]:
    """Goals of the last checkpoint named; it should improve on the checkpoint before it."""
    networks = results.methods(NETWORK)
    name, earlier = networks[-1], networks[:-1]
    found = {
        (row.figure, row.gazing_ratio, row.against == RANDOM, row.against): row.interval
        for row in results.comparisons
        if row.method == name
    }
    goals = []
    for ratio in GOAL_RATIOS:
        over_random = found.get((LOSS_OVER, ratio, True, RANDOM))
        over_best = next(
            (interval for key, interval in found.items() if key[:3] == (LOSS_OVER, ratio, False)), over_random
        )
        way = next((interval for key, interval in found.items() if key[:2] == (WAY, ratio)), None)
        goals += [
            _at_most(f"loss / random's at {ratio:g}", _value(over_random), MOST_OVER_RANDOM),
            _at_most(f"loss / best selector's at {ratio:g}", _value(over_best), MOST_OVER_BEST),
            Goal(
                f"way from random to the oracle at {ratio:g}",
                _value(way),
                f">= {LEAST_WAY:g}",
                way is not None and way.value >= LEAST_WAY,
            ),
        ]
        for other in earlier:
            interval = found.get((LOSS_MINUS, ratio, False, other))
            high = None if interval is None else interval.high
            goals.append(
                Goal(f"loss - {other}'s at {ratio:g}, upper end of 95 %", high, "< 0", high is not None and high < 0)
            )
    over = [row.over_random.value for row in results.kinds if row.method == name and row.over_random is not None]
    goals.append(_at_most("loss - random's, worst kind and ratio", max(over, default=None), 0.0))
    for row in results.requirements:
        if row.method == name and row.kind == "cctv" and row.requirement in (OWN, COMMON):
            goals.append(_at_most(f"cctv: ratio for {row.requirement}", row.ratio.value, MOST_CCTV))
    return goals


def check_feature_goals(results: Results) -> list[Goal]:
    """Goals of the last checkpoint's pasted pictures for every ViT, beside difference and the checkpoint before."""
    name, *earlier = reversed(results.methods(NETWORK))
    goals = []
    for viewer in dict.fromkeys(row.viewer for row in results.features):
        rows = [row for row in results.feature_comparisons if (row.viewer, row.method) == (viewer, name)]
        found = {
            (row.disturbance, row.against, row.gazing_ratio): row.interval
            for row in rows
            if row.kind == ALL and row.figure == RATIO
        }
        for (disturbance, ratio), most in FEATURE_GOALS.items():
            value = _value(found.get((disturbance, BASELINE, ratio)))
            goals.append(_at_most(f"{viewer}, {disturbance}: distance / {BASELINE}'s at {ratio:g}", value, most))
        kinds = [row.interval.value for row in rows if row.against == BASELINE and row.disturbance == "clean"]
        goals.append(_at_most(f"{viewer}: distance / {BASELINE}'s, worst kind and ratio", max(kinds, default=None), 1))
        for other in earlier[:1]:
            for ratio, most in OVER_EARLIER.items():
                interval = found.get(("clean", other, ratio))
                high = None if interval is None else interval.high
                goals.append(_at_most(f"{viewer}: distance / {other}'s at {ratio:g}, upper end of 95 %", high, most))
    return goals


def time_methods(methods: Sequence[Method], evaluator: Evaluator) -> list[Timing]:
    """Median time of choosing for one clip and for a batch; the oracle is left out, nobody can use it."""
    timings = []
    for batch in sorted({1, min(16, len(evaluator.clips))}):
        _, video = next(evaluator.clips.batches(batch, evaluator.device))
        for method in methods:
            if method.sort != ORACLE and method.name != UNTRAINED:
                timed = on_files(method, evaluator, batch)
                timings.append(Timing(method.name, TIMED_RATIO, batch, RUNS, time_method(timed, video, TIMED_RATIO)))
    return timings


def on_files(method: Method, evaluator: Evaluator, batch: int) -> Method:
    """A method that reads files, as one that ignores the video; its files were read before, as decoding does."""
    choose = method.choose_files
    if choose is None:
        return method
    return replace(method, choose=lambda _, ratio, __: choose(evaluator.clips, slice(0, batch), ratio))


def machine(device: torch.device) -> dict[str, str]:
    """The machine and the versions that ran it."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": name,
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "python": platform.python_version(),
    }


def goal_table(goals: Sequence[Goal]) -> str:
    """The goals, met or not."""
    return table(
        ["goal", "value", "wanted", "met"],
        [
            [goal.name, "-" if goal.value is None else f"{goal.value:.4f}", goal.wanted, "yes" if goal.met else "no"]
            for goal in goals
        ],
        "Goals",
    )


def time_table(timings: Sequence[Timing]) -> str:
    """Milliseconds by method and batch."""
    batches = sorted({timing.clips for timing in timings})
    found = {(timing.method, timing.clips): timing.median_ms for timing in timings}
    return table(
        ["method", *(f"{batch} clip{'s' * (batch > 1)}, ms" for batch in batches)],
        [
            [method, *(f"{found[method, batch]:.2f}" for batch in batches)]
            for method in dict.fromkeys(timing.method for timing in timings)
        ],
        f"Time to choose at {TIMED_RATIO:g}, 16 frames a clip",
    )


def _value(interval: Interval | None) -> float | None:
    return None if interval is None else interval.value


def _at_most(name: str, value: float | None, most: float) -> Goal:
    return Goal(name, value, f"<= {most:g}", value is not None and value <= most)


def time_method(method: Method, video: Tensor, gazing_ratio: float) -> float:
    """Median milliseconds of choosing for a batch, after one call that is not counted."""
    times = []
    for _ in range(RUNS + 1):
        _synchronise(video)
        begun = time.perf_counter()
        method.choose(video, gazing_ratio, torch.Generator().manual_seed(0))
        _synchronise(video)
        times.append((time.perf_counter() - begun) * 1000)
    return round(median(times[1:]), 3)


def _synchronise(video: Tensor) -> None:
    if video.is_cuda:
        torch.cuda.synchronize(video.device)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.quality", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of videos")
    parser.add_argument("--split", default="test", help='sub-folder of --data; "" for the folder itself (default test)')
    parser.add_argument(
        "--checkpoint",
        action="append",
        required=True,
        metavar="LABEL=X",
        help="may be repeated, weak to strong; the last is judged",
    )
    parser.add_argument("--reconstructor", help="folder of the judge (default: the shipped one)")
    parser.add_argument(
        "--against",
        type=lambda text: tuple(text.split(",")),
        help="default: every selector, untrained, and the oracle (with --features the feature-oracle)",
    )
    parser.add_argument(
        "--oracle-ratios",
        type=lambda text: tuple(map(float, text.split(","))),
        default=ORACLE_RATIOS,
        help="ratios at which the oracle runs (default 0.05,0.1)",
    )
    add_feature_arguments(parser)
    parser.add_argument("--frames", type=int, default=16, help="frames of every clip (default 16)")
    parser.add_argument("--stride", type=int, help="take every STRIDE-th frame (default: evenly over the clip)")
    parser.add_argument("--limit", type=int, help="at most so many clips (default: all)")
    parser.add_argument("--batch", type=int, default=16, help="clips at once (default 16)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: a GPU if there is one)")
    parser.add_argument("--no-time", dest="time", action="store_false", help="leave the timings out")
    parser.add_argument("--out", type=Path, help="JSON file; .md and .png are written beside it")
    return parser


if __name__ == "__main__":
    sys.exit(main())
