"""From a file to its gaze: frames a second of decoding alone, of preprocessing, of choosing, and of all of it at once.

    python -m benchmarks.file CLIP --device cuda --dtype bfloat16 --out benchmarks/results/2026-01-01-file-h200.json

CLIP is any real video: it is scaled to the size that is measured and written as H.264, since flat or random pictures
decode at other speeds. `of_decoding` is the rate of `model.gaze(path)` as a share of that of the decoder alone in the
same run; `of_both` its share of decoding and choosing one after the other. The first pass over the file is a warm-up.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import torch

from autogaze.decoding.frames import FrameGazer
from autogaze.gaze_video import GazeOptions, gaze_video
from autogaze.media.source import prefetch, to_device
from autogaze.media.video import open_writer, probe, read_chunks
from autogaze.model import AutoGaze
from benchmarks.timing import machine


def main() -> int:
    args = _arguments()
    device = torch.device(args.device)
    model = AutoGaze.from_pretrained(args.checkpoint, device).to(getattr(torch, args.dtype))
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "clip.mp4"
        write_clip(args.clip, path, (args.height, args.width), args.frames)
        rates = measure_all(model, path, args.ratio, args.runs, Path(scratch))
    tiles = {name: rate for name, rate in rates.items() if name.endswith("tiles")}
    report = {
        **machine(),
        "clip": {"height": args.height, "width": args.width, "frames": args.frames, "codec": "h264"},
        "model": {"checkpoint": args.checkpoint, "dtype": args.dtype, "gazing_ratio": args.ratio},
        "frames_per_s": {name: round(rate, 1) for name, rate in rates.items()},
        "of_decoding": round(rates["gaze_path"] / rates["decode"], 3),
        "of_both": round(rates["gaze_path"] * (1 / rates["decode"] + 1 / rates["choose"]), 3),
        "tiles_of_choosing": round(tiles["gaze_path_tiles"] / tiles["choose_tiles"], 3),
    }
    text = json.dumps(report, indent=1)
    if args.out:
        args.out.write_text(text + "\n")
    print(text)
    return 0


def measure_all(model: AutoGaze, path: Path, ratio: float, runs: int, scratch: Path) -> dict[str, float]:
    """Frames a second of each part and of the whole, each the median of `runs`."""
    frames, device, info = probe(path).frames or 0, model.device, probe(path)
    held, options = [chunk.frames for chunk in read_chunks(path)], GazeOptions(ratio, None)

    def choose(tiles: bool) -> None:
        look = FrameGazer(model, ratio, None, tiles)
        for part in held:
            look(part)

    def preprocess() -> None:
        for part in held:
            model.preprocessor(to_device(part, device))

    def ahead() -> None:
        with closing(prefetch(read_chunks(path))) as chunks:
            for chunk in chunks:
                to_device(chunk.frames, device)

    parts: dict[str, Callable[[], object]] = {
        "decode": lambda: sum(len(chunk) for chunk in read_chunks(path)),
        "decode_and_copy": ahead,
        "preprocess": preprocess,
        "choose": lambda: choose(False),
        "gaze_path": lambda: model.gaze(path, ratio),
        "command_no_overlay": lambda: gaze_video(model, info, scratch / "out", options, pictures=False),
        "choose_tiles": lambda: choose(True),
        "gaze_path_tiles": lambda: model.gaze(path, ratio, tiles=True),
    }
    rates = {}
    for name, call in parts.items():
        rates[name] = frames / _seconds(call, device, runs)
        print(f"{name}: {rates[name]:.0f} frames/s", file=sys.stderr)
    return rates


def write_clip(clip: Path, path: Path, size: tuple[int, int], frames: int) -> None:
    """A clip of so many frames of a size, as H.264: the video's own frames, forwards and backwards."""
    with open_writer(path, 30) as writer:
        for frame in _there_and_back(clip, frames):
            writer.write(cv2.resize(np.ascontiguousarray(frame), size[::-1], interpolation=cv2.INTER_CUBIC))


def _there_and_back(clip: Path, frames: int) -> Iterator[np.ndarray]:
    held = np.concatenate([chunk.frames for _, chunk in zip(range(8), read_chunks(clip), strict=False)])
    order = [*range(len(held)), *range(len(held) - 2, 0, -1)]
    yield from (held[order[k % len(order)]] for k in range(frames))


def _seconds(call: Callable[[], object], device: torch.device, runs: int) -> float:
    times = []
    for _ in range(runs + 1):
        begun = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.file", description=__doc__.split("\n")[0])
    parser.add_argument("clip", type=Path, help="a real video")
    parser.add_argument("--checkpoint", default="autogaze-base", help="default autogaze-base")
    parser.add_argument("--device", default="cpu", help="default cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="default float32")
    parser.add_argument("--height", type=int, default=1080, help="pixels (default 1080)")
    parser.add_argument("--width", type=int, default=1920, help="pixels (default 1920)")
    parser.add_argument("--frames", type=int, default=240, help="of the clip (default 240)")
    parser.add_argument("--ratio", type=float, default=0.1, help="gazing ratio (default 0.1)")
    parser.add_argument("--runs", type=int, default=3, help="after one to warm up (default 3)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
