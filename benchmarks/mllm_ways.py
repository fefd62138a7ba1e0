"""Which units of a video a vision tower should get: ways of choosing, judged by what is left of the tower's features.

    python -m benchmarks.mllm_ways MODEL --data videos --split test --out benchmarks/results/DATE-DEVICE-mllm-ways.json

MODEL is a ViT (timm name, hub id or folder) that stands in for a video LLM's tower: frames of `--size` pixels, units of
2 x 2 patches of one frame, whose token is the mean of its patches; attention within a frame, among kept patches only.
After each step the language model holds for every place the token that was kept there last, or that of the context.
Judged is 1 - cosine between those tokens and the dense tower's at that step, mean over places and steps: a way loses by
what it leaves out, by what changes unseen, and by what a tower makes of a frame with holes. Nothing is pasted or
rebuilt: a language model has these tokens and no others. All ways spend as many tokens.

- `finest`: the gaze model may choose from its finest scale only; the first step is kept in full;
- `coarse`: it chooses from all scales, a patch stands for the units under it; the first step is kept in full;
- `context`: in place of a first step in full a still of it at half the size, whose tokens stand for 2 x 2 units each,
  and what that saves is spent in all steps; chosen as in `finest`;
- `context, coarse`: the same, chosen as in `coarse`;
- `budget`: as `finest`, with `max_visual_tokens` for the whole clip instead of a ratio;
- `difference`, `random`: selectors without a network, on the finest scale; the first step is kept in full.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from autogaze.core.gaze import Gaze
from autogaze.core.grid import PatchGrid
from autogaze.evaluate.bootstrap import Interval, bootstrap
from autogaze.evaluate.clips import ClipSet, load_clips
from autogaze.files import write_text
from autogaze.mllm.gazing import UnitGazer, Video
from autogaze.mllm.units import Choice, UnitGrid, keep_units
from autogaze.model import AutoGaze
from autogaze.selectors import make_selector
from autogaze.vit.gazed import GazedViT

MERGE = 2  # patches along a side of a unit
WAYS = ("finest", "coarse", "context", "context, coarse", "budget", "difference", "random")


@dataclass(frozen=True)
class Row:
    """One way at one ratio; intervals are 95 % over sources."""

    way: str
    gazing_ratio: float
    tokens: float  # a clip, the context's included
    held: Interval  # 1 - cosine of the tokens held after each step
    after_first: Interval  # the same without the first step
    kept: Interval  # 1 - cosine of kept tokens alone: what a tower makes of a frame with holes
    clips: tuple[float, ...]  # `held`, in the order of the clips


class Judge:
    """A ViT as the tower of a video LLM."""

    def __init__(self, vit: GazedViT) -> None:
        self.vit = vit
        self.side = vit.frame_px[0] // vit.patch_size // MERGE  # units

    def tokens(self, video: Tensor, kept: Tensor) -> Tensor:
        """(T, units, D) of (1, T, 3, H, W) frames; zeros where (T, units) bool is False."""
        side = video.shape[-1] // self.vit.patch_size
        grid = PatchGrid((video.shape[-1],), self.vit.patch_size)
        units = kept.unflatten(1, (side // MERGE, side // MERGE))
        chosen = units.repeat_interleave(MERGE, 1).repeat_interleave(MERGE, 2).flatten(1)
        order = (~chosen).sort(dim=1, stable=True).indices[:, : int(chosen.sum(1).max())]
        gaze = Gaze(order[None], chosen.gather(1, order)[None], grid)
        maps = self.vit(video, gaze).dense()[0]  # (T, D, side, side)
        return F.avg_pool2d(maps, MERGE).flatten(2).transpose(1, 2)

    def context(self, frame: Tensor) -> Tensor:
        """(units, D): every place with the token of a still of half the size."""
        small = F.interpolate(frame, scale_factor=0.5, mode="bilinear", antialias=True)
        side = self.side // 2
        tokens = self.tokens(small[None], torch.ones(1, side * side, dtype=torch.bool, device=frame.device))[0]
        return tokens.unflatten(0, (side, side)).repeat_interleave(2, 0).repeat_interleave(2, 1).flatten(0, 1)


def choose(way: str, gaze: AutoGaze, frames: Tensor, grid: UnitGrid, ratio: float) -> tuple[Tensor, int]:
    """(T, units) bool of (T, 3, H, W) frames 0..255, and the tokens of the context."""
    if way in ("difference", "random"):
        own = PatchGrid(gaze.grid.scales[-1:], gaze.grid.patch_size)
        seen = UnitGazer(gaze, ratio)._see(frames, (own.scales[-1], own.scales[-1]))[None]
        ratios = torch.full((1, grid.steps), ratio, dtype=torch.float64)
        ratios[:, 0] = 1
        picked = make_selector(way, own)(seen, ratios, torch.Generator(frames.device).manual_seed(0))
        return keep_units([Choice.of(picked, grid)], ratio)[0], 0
    context = grid.per_step // 4 if way.startswith("context") else 0
    tokens = grid.per_step + (grid.steps - 1) * max(1, int(ratio * grid.per_step))
    share: float | None = (tokens - context) / len(grid) if context else None if way == "budget" else ratio
    scales = gaze.grid.scales if way.endswith("coarse") else gaze.grid.scales[-1:]
    (choice,) = UnitGazer(gaze, share, None, not context, scales)([Video(frames, grid)])
    return keep_units([choice], share, tokens - context, not context)[0], context


@torch.inference_mode()
def judge_clip(judge: Judge, dense: Tensor, video: Tensor, kept: Tensor, context: bool) -> tuple[float, float, float]:
    """`held`, `after_first` and `kept` of one clip."""
    tokens, cut = dense.clone(), ~kept.all(1)  # a frame in full is the dense one
    if bool(cut.any()):
        tokens[cut] = judge.tokens(video[:, cut], kept[cut])
    held = judge.context(video[0, :1]) if context else torch.zeros_like(tokens[0])
    distances = []
    for t, keep in enumerate(kept):
        held = torch.where(keep[:, None], tokens[t], held)
        distances.append(1 - F.cosine_similarity(held, dense[t], dim=-1))
    after = torch.stack(distances)
    own = 1 - F.cosine_similarity(tokens[kept], dense[kept], dim=-1)
    return float(after.mean()), float(after[1:].mean()), float(own.mean())


def measure(judge: Judge, gaze: AutoGaze, clips: ClipSet, args: argparse.Namespace) -> list[Row]:
    """A row for every way and ratio."""
    device, grid = gaze.device, UnitGrid(args.steps, judge.side, judge.side)
    found: dict[tuple[str, float], list[tuple[float, ...]]] = {}
    for index, (part, video) in enumerate(clips.batches(1, device)):
        frames = clips.frames[part][0].to(device).permute(0, 3, 1, 2).float()
        with torch.inference_mode():
            dense = judge.tokens(video, torch.ones(args.steps, grid.per_step, dtype=torch.bool, device=device))
        for ratio in args.ratios:
            for way in args.ways:
                kept, context = choose(way, gaze, frames, grid, ratio)
                scores = judge_clip(judge, dense, video, kept, bool(context))
                found.setdefault((way, ratio), []).append((int(kept.sum()) + context, *scores))
        print(f"\r{index + 1} of {len(clips)} clips", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    rows = []
    for (way, ratio), scores_of in found.items():
        tokens, *columns = np.array(scores_of).T
        intervals = [bootstrap([column], clips.groups) for column in columns]
        rows.append(Row(way, ratio, float(tokens.mean()), *intervals, tuple(columns[0].round(5).tolist())))
    return rows


HEAD = (
    "| ratio | way | tokens | held | held, after the first step | kept alone |\n| ---: | --- | ---: | --- | --- | --- |"
)


def line(row: Row) -> str:
    """One row of the table."""
    figures = (row.held, row.after_first, row.kept)
    shown = " | ".join(f"{x.value:.4f} [{x.low:.4f}, {x.high:.4f}]" for x in figures)
    return f"| {row.gazing_ratio} | {row.way} | {row.tokens:.0f} | {shown} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a table; the last line is JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks.mllm_ways", description=__doc__.splitlines()[0])
    parser.add_argument("model", help="timm name, hub id or folder of the ViT")
    parser.add_argument("--data", type=Path, default=Path("../shared/videos"))
    parser.add_argument("--split", default="test", help="folder inside --data; '' for --data itself")
    parser.add_argument("--gaze", default="autogaze-base", help="name or folder of the gaze model")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.1, 0.25])
    parser.add_argument("--steps", type=int, default=8, help="frames of each clip")
    parser.add_argument("--size", type=int, default=392, help="pixels a side of the ViT's frames")
    parser.add_argument("--limit", type=int, help="at most so many clips")
    parser.add_argument("--device")
    parser.add_argument("--out", type=Path, help="JSON file; a table is written beside it")
    args = parser.parse_args(argv)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    vit = GazedViT.from_pretrained(args.model, size=args.size, device=device, attention="frame").requires_grad_(False)
    if args.size % (vit.patch_size * MERGE * 2):
        parser.error(f"--size must be a multiple of {vit.patch_size * MERGE * 2}, got {args.size}")
    gaze = AutoGaze.from_pretrained(args.gaze, device).eval()
    grid = PatchGrid((args.size,), vit.patch_size)
    folder = args.data / args.split
    clips = load_clips(folder, grid, vit.preprocessor, frames=args.steps, limit=args.limit)
    rows = measure(Judge(vit), gaze, clips, args)
    table = "\n".join([HEAD, *(line(row) for row in rows)])
    if args.out is not None:
        data = {
            "what": "ways of choosing units",
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            "machine": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "CPU",
            "torch": torch.__version__,
            "model": Path(args.model).name,
            "gaze": args.gaze,
            "options": {"split": args.split, "steps": args.steps, "size": args.size},
            "clips": list(clips.names),
            "rows": [asdict(row) for row in rows],
        }
        write_text(args.out, json.dumps(data, indent=1))
        write_text(args.out.with_suffix(".md"), table + "\n")
    print(table)
    print(json.dumps({"rows": len(rows), "clips": len(clips)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
