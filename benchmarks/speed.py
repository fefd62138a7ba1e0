"""How fast gazing is on a GPU: clips, streams and 1080p tiles, beside the floor and the published implementation.

    python -m benchmarks.speed --out benchmarks/results/<date>-<device>-speed.json

Random weights at base size, random frames, 16 frames at 224 unless said otherwise; encoder and decoder, selection
included. `PUBLISHED_MS` are the published implementation's times on an H200 (ms a clip, float32 / bfloat16).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch

from autogaze import AutoGaze
from autogaze.decoding.backends import chosen_backend
from autogaze.model import AutoGazeConfig
from benchmarks.timing import machine, measure

FRAMES = 16
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
PUBLISHED_MS = {
    (1, 0.1): (281, 397),
    (1, 0.4): (1084, 1178),
    (1, 0.75): (1944, 2008),
    (8, 0.1): (42.5, 39.2),
    (8, 0.4): (123, 164),
    (8, 0.75): (261, 277),
    (64, 0.1): (7.42, 5.84),
    (64, 0.4): (23.7, 20.7),
    (64, 0.75): (47.7, 37.9),
    (256, 0.1): (4.77, 2.80),
    (256, 0.4): (15.7, 10.4),
}


def clip_flops(model: AutoGaze, ratio: float) -> float:
    """Multiply-adds x 2 of one clip: encoder, decoder and heads, attention over the tokens that are there."""
    config, tokens, budget = model.config, model.visual_tokens, model.grid.budget(ratio)
    width = config.hidden_size
    layer = 4 * width * width + 3 * width * config.intermediate_size
    patch = 3 * config.patch_size**2 * width
    encoder = tokens * (
        patch + config.encoder_depth * width * width * config.temporal_kernel * config.spatial_kernel**2 + width * width
    )
    groups = -(-budget // config.num_multi_token_pred)
    heads = groups * config.num_multi_token_pred * width * (model.grid.patches_per_frame + 1)
    per_frame = encoder + (tokens + budget) * layer * config.num_hidden_layers + heads
    length = tokens + budget
    pairs = sum(length * (t * length + length / 2) for t in range(FRAMES))
    return 2 * (FRAMES * per_frame + 2 * pairs * width * config.num_hidden_layers)


def matrix_rate(device: torch.device) -> float:
    """Measured bfloat16 matrix rate in operations a second."""
    a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192**3 / measure("matmul", lambda: a @ b, device, runs=10).median_ms * 1e3


def launch_cost_ms(device: torch.device) -> float:
    """Time of one empty-handed kernel inside a CUDA graph."""
    x = torch.zeros(32, device=device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(200):
            x.add_(1)
    return measure("launch", graph.replay, device).median_ms / 200


def clips(device: torch.device, batches: list[int], ratios: list[float], dtypes: list[torch.dtype]) -> list[dict]:
    """Time whole clips at every batch, ratio and dtype."""
    rate, launch, rows = matrix_rate(device), launch_cost_ms(device), []
    for dtype in dtypes:
        model = AutoGaze(AutoGazeConfig.base()).to(device, dtype).eval()
        for batch in batches:
            video = torch.randn(batch, FRAMES, 3, 224, 224, device=device, dtype=dtype)
            for ratio in ratios:
                if (batch, ratio) not in PUBLISHED_MS:
                    continue
                timing = measure(
                    f"clip b{batch} r{ratio} {dtype}",
                    lambda v=video, m=model, r=ratio: m.generate(v, gazing_ratio=r),
                    device,
                    runs=10 if batch > 8 else 20,
                )
                passes = FRAMES * -(-model.grid.budget(ratio) // model.config.num_multi_token_pred)
                kernels = passes * (2 * model.config.num_hidden_layers + 3)
                floor = max(clip_flops(model, ratio) / rate * 1e3, kernels * launch / batch)
                ms = timing.median_ms / batch
                published = PUBLISHED_MS[batch, ratio][dtype == torch.bfloat16]
                rows.append(
                    {
                        "batch": batch,
                        "gazing_ratio": ratio,
                        "dtype": str(dtype).removeprefix("torch."),
                        "ms_per_clip": ms,
                        "published_ms_per_clip": published,
                        "speedup": published / ms,
                        "floor_ms_per_clip": floor,
                        "times_floor": ms / floor,
                        **asdict(timing),
                    }
                )
                print(
                    f"b{batch} r{ratio} {dtype}: {ms:.3f} ms/clip, published {published}, floor {floor:.3f}",
                    file=sys.stderr,
                )
            del video
    return rows


def stream(device: torch.device, streams: int, frames: int, ratio: float = 0.05) -> dict:
    """Time frames of streams side by side, one frame of each a call; every call is waited for."""
    model = AutoGaze(AutoGazeConfig.base()).to(device, torch.bfloat16).eval()
    gazer = model.stream(gazing_ratio=ratio, batch=streams)
    frame = torch.randn(streams, 3, 224, 224, device=device, dtype=torch.bfloat16)
    for _ in range(40):
        gazer.step(frame)
    torch.cuda.synchronize(device)
    before, times = torch.cuda.memory_allocated(device), []
    for _ in range(frames):
        start = time.perf_counter()
        gazer.step(frame)
        torch.cuda.synchronize(device)
        times.append((time.perf_counter() - start) * 1e3)
    grown = torch.cuda.memory_allocated(device) - before
    times.sort()
    median = times[len(times) // 2]
    result = {
        "streams": streams,
        "frames": frames,
        "gazing_ratio": ratio,
        "median_ms": median,
        "p99_ms": times[int(0.99 * len(times))],
        "max_ms": times[-1],
        "frames_per_s": streams * 1e3 / median,
        "memory_growth_bytes": grown,
    }
    print(f"stream x{streams}: {result}", file=sys.stderr)
    return result


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where to write the JSON; stdout by default")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="of the clips (both)")
    parser.add_argument("--frames", type=int, default=10_000, help="of the single stream (10000)")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("benchmarks.speed needs a CUDA device; on a CPU use benchmarks.speed_cpu", file=sys.stderr)
        return 2
    device = torch.device("cuda")
    dtypes = [DTYPES[name] for name in args.dtypes]
    result = {
        "machine": machine(),
        "way": chosen_backend(AutoGaze(AutoGazeConfig.base()).to(device)),
        "clips": clips(device, [1, 8, 64, 256], [0.1, 0.4, 0.75], dtypes),
        "streams": [stream(device, 1, args.frames), stream(device, 64, 300)],
        "tiles_1080p": stream(device, 45, 300),
        "tiles_1080p_stride_2": stream(device, 15, 300),  # 3 x 5 tiles; without taking the frames' means
    }
    text = json.dumps(result, indent=1)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")
    print(text if not args.out else json.dumps({"out": str(args.out)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
