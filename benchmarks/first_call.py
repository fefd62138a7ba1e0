"""How long the first call of every new shape takes on a GPU: in a fresh process, with nothing compiled.

    python -m benchmarks.first_call --out benchmarks/results/<date>-<device>-first-call.json

Walks 30 shapes (batches, frames, ratios, a requirement, a ratio a clip) with the shipped model in bfloat16, calls each
twice, and prints the seconds of both. The process starts with an empty TRITON_CACHE_DIR; then the walk is done again
by another process, which finds what the first one compiled.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from autogaze import AutoGaze
from autogaze.files import write_json
from benchmarks.timing import machine

FIRST_S, LATER_S = 15.0, 0.3  # goals: of the first call of all, and of the first call of every later shape
BATCHES, FRAMES, RATIOS = (1, 2, 3, 8, 32, 33, 64), (1, 8, 12, 16, 64), (0.05, 0.1, 0.13, 0.2, 0.75)


@dataclass(frozen=True)
class Shape:
    """One call of `generate`."""

    batch: int = 1
    frames: int = 16
    ratio: float = 0.1
    requirement: float | None = None
    ratio_a_clip: bool = False

    def request(self) -> dict[str, Any]:
        ratio = torch.linspace(0.05, self.ratio, self.batch) if self.ratio_a_clip else self.ratio
        return {"gazing_ratio": ratio, "task_loss_requirement": self.requirement}


def shapes() -> list[Shape]:
    """30 shapes, the most usual one first."""
    walked = [Shape()]
    walked += [Shape(ratio=ratio) for ratio in RATIOS] + [Shape(requirement=0.7, ratio=0.75)]
    walked += [Shape(batch) for batch in BATCHES] + [Shape(frames=frames) for frames in FRAMES]
    walked += [Shape(batch, ratio=0.13) for batch in (2, 33)] + [Shape(batch, ratio_a_clip=True) for batch in (3, 32)]
    walked += [Shape(batch, requirement=0.7, ratio=0.75) for batch in (3, 8, 33)]
    walked += [Shape(8, 8, 0.2), Shape(33, 12, 0.05), Shape(32, 64), Shape(64, 1, 0.75), Shape(2, 12, 0.2)]
    walked += [Shape(3, 64, 0.05), Shape(8, 1, 0.13), Shape(64, 8, 0.2), Shape(33, 8, ratio_a_clip=True)]
    return list(dict.fromkeys(walked))[:30]


def walk(device: str) -> list[dict[str, Any]]:
    """Seconds of the first and the second call of every shape, in this process."""
    model = AutoGaze.from_pretrained("autogaze-base", device).eval()
    model = model.to(torch.bfloat16) if device == "cuda" else model
    rows = []
    for shape in shapes() if device == "cuda" else shapes()[:2]:
        video = torch.randn(shape.batch, shape.frames, 3, 224, 224, device=device).to(model.connector.pos_embed.dtype)
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            model.generate(video, **shape.request()).ids.sum().item()
            seconds.append(round(time.perf_counter() - start, 3))
        rows.append({**asdict(shape), "first_s": seconds[0], "second_s": seconds[1]})
        print(f"{shape}: {seconds[0]:.2f} s, then {seconds[1]:.3f} s", file=sys.stderr, flush=True)
    return rows


def in_process(device: str, cache: str) -> list[dict[str, Any]]:
    """`walk` in a fresh process whose Triton keeps what it compiles in `cache`."""
    command = [sys.executable, "-m", "benchmarks.first_call", "--walk", "--device", device]
    environment = {**os.environ, "TRITON_CACHE_DIR": cache}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    rows: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--walk", action="store_true", help="only walk, in this process, with the cache as it is")
    parser.add_argument("--out", help="JSON file to write")
    args = parser.parse_args(argv)
    if args.walk:
        print(json.dumps(walk(args.device)))
        return 0
    with tempfile.TemporaryDirectory(prefix="autogaze-first-call-") as folder:
        cache = str(Path(folder) / "triton")
        empty, kept = in_process(args.device, cache), in_process(args.device, cache)
    results = {
        "machine": machine(),
        "command": "python -m benchmarks.first_call",
        "goals_s": {"first": FIRST_S, "later": LATER_S},
        "empty_cache": empty,
        "kept_cache": kept,
        "first_s": empty[0]["first_s"],
        "slowest_later_s": max(row["first_s"] for row in empty[1:]),
        "first_with_kept_cache_s": kept[0]["first_s"],
    }
    if args.out:
        write_json(args.out, results)
    print(json.dumps(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
