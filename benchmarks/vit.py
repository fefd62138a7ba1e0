"""Gaze and encode, end to end, against the dense ViT: time and memory.

    python -m benchmarks.vit --out benchmarks/results/DATE-DEVICE-vit.json            every case
    python -m benchmarks.vit --case base so400m-1 --out FILE                          some of them
    python -m benchmarks.vit --parts --out benchmarks/results/DATE-DEVICE-vit-parts.json
    python -m benchmarks.vit --quick                                                  toy sizes, any machine

Weights are random: time does not depend on them. Both sides are bf16, compiled block by block and run in CUDA graphs,
from frames on the device to features on the device. Ours is the whole of it: choosing (`AutoGaze.generate`), then
encoding the choice (`GraphedViT`). The dense model gets its best batch. `--parts` measures what the break-even chart is
made of (`autogaze.report.break_even`); `--ship` also writes it into the package.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from autogaze import AutoGaze, Gaze
from autogaze.files import write_json
from autogaze.model import AutoGazeConfig
from autogaze.vit import GazedViT, GraphedViT
from benchmarks.timing import machine
from benchmarks.vit_opponents import dense_frames, dense_joint, published, published_decode_ms
from benchmarks.vit_timing import Timing, graphed, measure, start_memory

GAZE_FRAMES = 16  # frames that the gaze model remembers: longer clips are gazed at in parts of 16


@dataclass(frozen=True)
class Case:
    """One end-to-end comparison."""

    name: str
    what: str
    vit: str  # timm name
    size: int  # pixels
    clips: int
    frames: int
    ratio: float
    attention: str
    chunks: tuple[int, ...]  # frames at once that the dense model may try
    at_least: float  # how many times faster than dense we must be, gaze included
    gaze_stride: int = 1  # of `AutoGaze.generate`, where a frame is cut into tiles


BASE, SO400M = "vit_base_patch16_siglip_224", "vit_so400m_patch14_siglip_378"
CASES = (
    Case("base", "ViT-B/16 224, 16 frames, batch 64", BASE, 224, 64, 16, 0.1, "frame", (128, 256, 1024), 2.0),
    Case("so400m-1", "SO400M/14 378, 16 frames, batch 1", SO400M, 378, 1, 16, 0.1, "frame", (16,), 2.0, 2),
    Case("so400m-8", "SO400M/14 378, 16 frames, batch 8", SO400M, 378, 8, 16, 0.1, "frame", (32, 128), 5.0, 2),
    Case("joint", "ViT-B/16 224, joint attention over 256 frames", BASE, 224, 1, 256, 0.1, "joint", (), 10.0),
    # A second of 1080p at 30 fps: 3 x 6 tiles of 378 px, each two clips of 15 frames.
    Case("1080p", "a second of 1080p, SO400M/14 over 18 tiles", SO400M, 378, 36, 15, 0.05, "frame", (60, 180), 8.0, 2),
)
QUICK = tuple(
    replace(case, clips=min(2, case.clips), frames=min(4, case.frames), size=224, chunks=(4,)) for case in CASES
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vit", description=__doc__.split("\n")[0])
    parser.add_argument("--case", nargs="+", choices=[case.name for case in CASES], help="only these cases")
    parser.add_argument("--parts", action="store_true", help="measure the parts of the break-even chart instead")
    parser.add_argument("--ship", action="store_true", help="with --parts: write them into the package too")
    parser.add_argument("--runs", type=int, default=20, help="timed runs of each call (20)")
    parser.add_argument(
        "--gaze-stride",
        type=int,
        metavar="N",
        help="look with N times fewer pixels each way in the cases that gaze in tiles (2); the others do not change",
    )
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    parser.add_argument("--quick", action="store_true", help="toy sizes, to see that it runs")
    args = parser.parse_args(argv)
    if args.ship and (args.quick or not args.parts):
        print(
            "benchmarks.vit: --ship writes what --parts measured, and toy sizes are not for shipping", file=sys.stderr
        )
        return 2
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not args.quick:
        print("benchmarks.vit: there is no CUDA device; --quick runs toy sizes on the CPU", file=sys.stderr)
        return 2
    result: dict[str, object] = {
        "benchmark": "vit",
        "quick": args.quick,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **machine(),
        "timm": timm.__version__,
    }
    torch.manual_seed(0)
    if args.parts:
        from benchmarks.vit_parts import measure_parts, ship

        result["parts"] = measure_parts(device, args.quick, args.runs)
        if args.ship:
            ship(result)
    else:
        cases = [case for case in (QUICK if args.quick else CASES) if not args.case or case.name in args.case]
        if args.gaze_stride is not None:  # the others look at the model's own square
            cases = [replace(case, gaze_stride=args.gaze_stride) if case.gaze_stride > 1 else case for case in cases]
        result["cases"] = [run_case(case, device, args.runs, args.quick) for case in cases]
    if args.out:
        write_json(args.out, result)
    print(json.dumps(result))
    return 0


@torch.inference_mode()
def run_case(case: Case, device: torch.device, runs: int, quick: bool) -> dict[str, object]:
    """Every way of one case, and how they compare."""
    print(f"{case.name}: {case.what}", file=sys.stderr, flush=True)
    torch._dynamo.reset()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    vit = make_vit(case.vit, case.size, quick).to(device, dtype).eval()
    model = AutoGaze(AutoGazeConfig.tiny() if quick else AutoGazeConfig.base()).to(device, dtype).eval()
    video = torch.randn(case.clips, case.frames, 3, case.size, case.size, device=device, dtype=dtype)
    gazed = GazedViT(vit, case.attention)
    gaze = choose(model, gazed, video, case.ratio, case.gaze_stride)
    ours = _ours(case, model, gazed, video, runs)
    dense = _dense(case, vit, video, runs)
    rival = _published(case, vit, video, gaze, runs)
    faster = dense["timing"]["median_ms"] / ours["total"]["median_ms"]
    result = {
        **asdict(case),
        "tokens": int(gaze.chosen.sum()),
        "dense_tokens": _dense_tokens(vit, video),
        "ours": ours,
        "dense": dense,
        "published": rival,
        "times_faster_than_dense": round(faster, 2),
        "times_faster_than_published": round(rival["total_ms"] / ours["total"]["median_ms"], 2),
        "reached": bool(faster >= case.at_least),
    }
    print(
        f"  dense {dense['timing']['median_ms']} ms, ours {ours['total']['median_ms']} ms "
        f"(gaze {ours['gaze']['median_ms']}, "
        f"encode {ours['encode']['median_ms']}), published {rival['total_ms']} ms: {faster:.2f} x dense "
        f"(asked: {case.at_least} x)",
        file=sys.stderr,
        flush=True,
    )
    return result


def choose(model: AutoGaze, gazed: GazedViT, video: Tensor, ratio: float, gaze_stride: int = 1) -> Gaze:
    """A gaze for the ViT: long clips in parts of 16 frames, other sizes and patches by tiles."""
    clips, frames = video.shape[:2]
    parts = video
    if frames > GAZE_FRAMES:
        if frames % GAZE_FRAMES:
            raise ValueError(f"{frames} frames are not a whole number of parts of {GAZE_FRAMES}")
        parts = video.unflatten(1, (-1, GAZE_FRAMES)).flatten(0, 1)
    tiled = gazed.patch_size != model.config.patch_size or video.shape[-1] != model.grid.scales[-1]
    target = {"target_scales": gazed.target_scales(model.grid), "target_patch_size": gazed.patch_size} if tiled else {}
    gaze = model.generate(parts, gazing_ratio=ratio, gaze_stride=gaze_stride, **target)
    loss = gaze.task_loss
    return replace(
        gaze,
        ids=gaze.ids.reshape(clips, frames, -1),
        chosen=gaze.chosen.reshape(clips, frames, -1),
        task_loss=None if loss is None else loss.reshape(clips, frames, -1),
    )


def make_vit(name: str, size: int, quick: bool) -> nn.Module:
    """A timm ViT of random weights; with `quick` two narrow blocks of the same kind."""
    if not quick:
        return timm.create_model(name, num_classes=0, img_size=size)
    patch = 14 if "patch14" in name else 16
    return VisionTransformer(
        size, patch, embed_dim=64, depth=2, num_heads=2, class_token=False, global_pool="map", num_classes=0
    )


def _ours(case: Case, model: AutoGaze, gazed: GazedViT, video: Tensor, runs: int) -> dict[str, Any]:
    before = start_memory(video.device)
    look = partial(choose, model, gazed, video, case.ratio, case.gaze_stride)
    gaze = look()
    graphs = GraphedViT(gazed, video, gaze) if video.is_cuda else None
    encode: Callable[[Tensor, Gaze], object] = graphs or gazed
    total = measure(lambda: encode(video, look()), video.device, runs, before)
    alone = {
        "gaze": measure(look, video.device, runs),
        "encode": measure(lambda: encode(video, gaze), video.device, runs),
    }
    parts = {name: asdict(replace(timing, peak_memory_mib=None)) for name, timing in alone.items()}
    replayed = graphs and {"buckets": graphs.buckets, **graphs.form(gaze)._asdict()}
    return {"total": asdict(total), **parts, "slots": gaze.ids.numel(), "replayed": replayed}


def _dense(case: Case, vit: nn.Module, video: Tensor, runs: int) -> dict[str, Any]:
    ways = (
        {"all": dense_joint(vit, video)}
        if case.attention == "joint"
        else {chunk: dense_frames(vit, video, chunk) for chunk in case.chunks}
    )
    _compile_blocks(vit, video.device)
    tried: dict[Any, Timing] = {}
    for chunk, way in ways.items():
        before = start_memory(video.device)
        tried[chunk] = measure(graphed(way, video.device), video.device, runs, before)
    best = min(tried, key=lambda chunk: tried[chunk].median_ms)
    return {
        "frames_at_once": best,
        "timing": asdict(tried[best]),
        "tried_ms": {str(chunk): timing.median_ms for chunk, timing in tried.items()},
    }


def _published(case: Case, vit: nn.Module, video: Tensor, gaze: Gaze, runs: int) -> dict[str, Any]:
    before = start_memory(video.device)
    encode = measure(graphed(published(vit, video, gaze, case.attention), video.device), video.device, runs, before)
    squares = case.clips * -(-case.frames // GAZE_FRAMES) * _tiles(case.size, vit.patch_embed.patch_size[0])
    decode = published_decode_ms(squares, case.ratio) * min(case.frames, GAZE_FRAMES) / GAZE_FRAMES
    return {"encode": asdict(encode), "decode_ms": round(decode, 2), "total_ms": round(decode + encode.median_ms, 2)}


def _tiles(size: int, patch: int) -> int:
    """Squares of 14 x 14 patches that the published gaze model looks at in a frame."""
    return (-(-size // (14 * patch))) ** 2


def _dense_tokens(vit: nn.Module, video: Tensor) -> int:
    return video.shape[0] * video.shape[1] * vit.patch_embed.num_patches


def _compile_blocks(vit: nn.Module, device: torch.device) -> None:
    """One compiled block serves all: the code depends on shapes, not on weights."""
    if device.type == "cuda":
        for block in vit.blocks:
            block.compile(dynamic=False)


if __name__ == "__main__":
    raise SystemExit(main())
