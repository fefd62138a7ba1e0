"""How fast gazing is on a CPU, beside the published way in the same run.

    python -m benchmarks.speed_cpu --out benchmarks/results/<date>-<cpu>-speed-cpu.json
    python -m benchmarks.speed_cpu --busy 2

The second command has so many busy loops beside it, and compares the threads asked for with one.

Random weights at base size, one clip of 16 random frames at 224, float32; encoder, decoder and selection included.
The two sides take turns, so that other work on the machine slows both. The published side is
`benchmarks.published_loop`, without what the `generate` of transformers adds on top, and with our paste
error. On 2 cores of a machine like the one these goals were set on, the published implementation took `PUBLISHED_MS`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from autogaze import AutoGaze
from autogaze.decoding.backends import chosen_backend
from autogaze.files import write_json
from autogaze.model import AutoGazeConfig
from benchmarks.published_loop import generate_published
from benchmarks.timing import machine, measure

FRAMES = 16
GOALS = {0.1: 2.5, 0.75: 5.0}  # gazing ratio: times faster than the published way
PUBLISHED_MS = {0.1: 710.0, 0.75: 3200.0}


@dataclass(frozen=True)
class Comparison:
    """One gazing ratio, both sides, in milliseconds a clip."""

    gazing_ratio: float
    runs: int
    ours_ms: float  # median
    published_ms: float  # median
    times_faster: float  # median of the turns' ratios
    least: float  # the goal
    same_ids: bool
    published_implementation_ms: float  # recorded elsewhere, see above
    turns_ms: list[tuple[float, float]]  # ours, published


def compare(model: AutoGaze, video: torch.Tensor, ratio: float, runs: int) -> Comparison:
    """Time both sides in turns."""
    same = torch.equal(model.generate(video, ratio).ids, generate_published(model, video, ratio).ids)
    turns = []
    for _ in range(runs):
        sides = (lambda: model.generate(video, ratio), lambda: generate_published(model, video, ratio))
        turns.append(tuple(measure("", side, torch.device("cpu"), runs=1, warmup=0).median_ms for side in sides))
    ours_ms, published_ms = (statistics.median(side) for side in zip(*turns, strict=True))
    faster = statistics.median(theirs / ours for ours, theirs in turns)
    return Comparison(
        ratio,
        runs,
        ours_ms,
        published_ms,
        faster,
        GOALS[ratio],
        same,
        PUBLISHED_MS[ratio],
        [(round(ours, 1), round(theirs, 1)) for ours, theirs in turns],
    )


def busy(model: AutoGaze, video: torch.Tensor, loops: int, threads: int, runs: int) -> dict[str, object]:
    """Milliseconds a clip as a stream of one thread and of several, in turns, beside busy loops."""
    beside = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(loops)]
    turns = []
    try:
        for _ in range(runs + 1):
            turn = []
            for count in (1, threads):
                torch.set_num_threads(count)
                stream, start = model.stream(0.1), time.perf_counter()
                for frame in video.unbind(1):
                    stream.step(frame)
                turn.append((time.perf_counter() - start) * 1e3)
            turns.append(turn)
    finally:
        for loop in beside:
            loop.kill()
    one, several = (statistics.median(side) for side in zip(*turns[1:], strict=True))
    return {
        "busy_loops": loops,
        "threads": threads,
        "one_ms": one,
        "several_ms": several,
        "several_to_one": several / one,
    }


def load_average() -> list[float] | None:
    """Processes that wanted to run in the last 1, 5 and 15 minutes; this one counts its threads."""
    return [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None


def processor() -> str:
    """The name of the processor and the vector instructions that PyTorch uses on it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of both sides (default 2)")
    parser.add_argument("--runs", type=int, default=5, help="turns at every gazing ratio (default 5)")
    parser.add_argument("--busy", type=int, default=0, help="busy loops beside; compares --threads with one")
    parser.add_argument("--out", help="JSON file to write")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model, video = AutoGaze(AutoGazeConfig.base()).eval(), torch.randn(1, FRAMES, 3, 224, 224)
    rows, load_before = [], load_average()
    if args.busy:
        print(json.dumps(busy(model, video, args.busy, args.threads, args.runs)))
        return 0
    for ratio in GOALS:
        row = compare(model, video, ratio, args.runs)
        print(
            f"ratio {ratio}: {row.ours_ms:.0f} ms a clip, the published way {row.published_ms:.0f} ms: "
            f"{row.times_faster:.2f} times faster (goal {row.least}), same ids: {row.same_ids}",
            file=sys.stderr,
        )
        rows.append(asdict(row))
    results = {
        "machine": {**machine(), "cpu": processor(), "cpus": os.cpu_count()},
        "load_average": {"before": load_before, "after": load_average()},
        "command": "python -m benchmarks.speed_cpu",
        "decoding": ": ".join(chosen_backend(model)),
        "clips": rows,
    }
    if args.out:
        write_json(args.out, results)
    print(json.dumps(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
