"""Fidelity: how much of what a dense ViT says of a clip is left when it gets chosen patches.

    python -m benchmarks.fidelity MODEL --data videos --split test --out benchmarks/results/DATE-DEVICE-fidelity.json

MODEL is a timm name, a hub id or a folder. For every chooser (a checkpoint or a selector), way (attention, scales, how
the budget is spread over the frames) and number of patches a frame it says, as means over clips:

- `clip`: cosine of the clip's pooled feature (mean over frames) with the dense ViT's;
- `finds`: how often a clip's pooled feature is nearest to its own dense one among all clips;
- `frame`: cosine of each frame's pooled feature (not with joint attention, which pools a clip);
- `map`: cosine of `.dense()` with the dense ViT's tokens, over all cells of all frames (nothing there counts as 0);
- `votes`: how often the `--neighbours` nearest dense clips of other clips vote for the clip's `source_group`;
- milliseconds a clip: choosing and encoding.

`--adapter FILE` measures an adapted ViT beside the frozen one. With confidence over sources: 95 %, bootstrapped.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
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
from autogaze.evaluate.clips import ClipSet, load_clips
from autogaze.files import write_text
from autogaze.model import AutoGaze
from autogaze.selectors import SELECTORS
from autogaze.vit.gazed import GazedViT
from autogaze.vit.plan import Plan, choose

WAYS = {
    "nearest, spread": Plan("nearest", True, "spread"),  # the finest scale, frames in full spread over the clip
    "memory": Plan("memory", True, "first"),  # the finest scale, the first frame in full
    "memory, spread": Plan("memory", True, "spread"),
    "memory, even": Plan("memory", True, "none"),
    "memory, all scales": Plan("memory", False, "none"),
    "frame": Plan("frame", False, "none"),
    "frame, finest": Plan("frame", True, "none"),
    "frame, first in full": Plan("frame", True, "first"),
    "block_causal": Plan("block_causal", False, "none"),
    "block_causal, finest": Plan("block_causal", True, "none"),
    "joint": Plan("joint", False, "none"),
    "joint, finest": Plan("joint", True, "none"),
    "joint, first in full": Plan("joint", True, "first"),
}
DRAWS = 2000  # of the bootstrap


@dataclass(frozen=True, eq=False)
class Dense:
    """Results of the dense ViT on every clip."""

    pooled: Tensor  # (N, T, D)
    maps: Tensor  # (N, T, D, rows, columns), half precision, on the CPU


@dataclass(frozen=True)
class Row:
    """One measurement; a list holds the numbers of every clip."""

    chooser: str
    way: str
    attention: str
    adapted: bool
    per_frame: float  # patches a frame that were asked for
    patches: float  # patches a frame that were chosen
    clip: float
    finds: float
    frame: float | None
    map: float | None
    votes: float
    clip_low: float  # 95 % over sources
    clip_high: float
    finds_low: float
    finds_high: float
    choose_ms: float  # a clip
    encode_ms: float  # a clip
    clips: list[float]
    found: list[bool]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a table; the last line is JSON."""
    args = _parser().parse_args(argv)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    torch.manual_seed(0)
    gazed = GazedViT.from_pretrained(args.model, size=args.size, device=device, attention="frame").requires_grad_(False)
    clips = load_clips(args.data / args.split if args.split else args.data, PatchGrid(), limit=args.limit)
    frames = at_size(args.data / args.split if args.split else args.data, gazed, args.limit)
    dense = encode_densely(gazed, frames, device)
    adapted = None
    if args.adapter is not None:
        adapted = GazedViT.from_pretrained(args.model, args.adapter, size=args.size, device=device)
    rows = []
    for name in args.choosers:
        chooser = name if name in SELECTORS else AutoGaze.from_pretrained(name, device=device).eval()
        for per_frame in args.patches:
            chosen: dict[tuple[bool, str], tuple[list[Gaze], float]] = {}
            jobs = [(way, WAYS[way], gazed) for way in args.ways]
            jobs += [("adapted", adapted.recommended(), adapted)] if adapted is not None else []
            for way, plan, vit in jobs:
                key = (plan.finest, plan.whole)
                if key not in chosen:
                    chosen[key] = choose_all(chooser, clips, plan, per_frame, device, args.batch)
                vit.attention = plan.attention
                row = measure(name, way, plan, vit, frames, *chosen[key], dense, clips, per_frame, args)
                rows.append(row)
                print(line(row), file=sys.stderr, flush=True)
    report(rows, clips, args, argv, device)
    return 0


def at_size(folder: Path, gazed: GazedViT, limit: int | None) -> ClipSet:
    """The same clips in the ViT's pixels."""
    preprocessor = gazed.preprocessor
    return load_clips(folder, PatchGrid((gazed.frame_px[0],), gazed.patch_size), preprocessor, limit=limit)


@torch.inference_mode()
def encode_densely(gazed: GazedViT, frames: ClipSet, device: torch.device) -> Dense:
    """The ViT over every patch of every frame: GazedViT equals the dense model there (a test says so)."""
    pooled, maps = [], []
    side = gazed.frame_px[0]
    grid = PatchGrid((side,), gazed.patch_size)
    for _, video in frames.batches(1, device):
        ids = torch.arange(grid.patches_per_frame, device=device).expand(1, video.shape[1], -1)
        features = gazed(video, Gaze(ids, torch.ones_like(ids, dtype=torch.bool), grid))
        pooled.append(features.pool().float().cpu())
        maps.append(features.dense().half().cpu())
    return Dense(torch.cat(pooled), torch.cat(maps))


@torch.inference_mode()
def choose_all(
    chooser: AutoGaze | str, clips: ClipSet, plan: Plan, per_frame: float, device: torch.device, batch: int
) -> tuple[list[Gaze], float]:
    """A gaze of every batch of clips, and milliseconds a clip."""
    gazes, seconds = [], 0.0
    for _, video in clips.batches(batch, device):
        _wait(device)
        begun = time.perf_counter()
        gazes.append(choose(chooser, video, plan, per_frame))
        _wait(device)
        seconds += time.perf_counter() - begun
    return gazes, 1000 * seconds / len(clips)


@torch.inference_mode()
def measure(
    name: str,
    way: str,
    plan: Plan,
    vit: GazedViT,
    frames: ClipSet,
    gazes: list[Gaze],
    choose_ms: float,
    dense: Dense,
    clips: ClipSet,
    per_frame: float,
    args: argparse.Namespace,
) -> Row:
    """Encode every clip and compare."""
    device = gazes[0].device
    pooled, frame_cosines, map_cosines, seconds = [], [], [], 0.0
    vit(next(frames.batches(args.batch, device))[1], gazes[0]).pool()  # a first call also compiles and fills caches
    for (part, video), gaze in zip(frames.batches(args.batch, device), gazes, strict=True):
        _wait(device)
        begun = time.perf_counter()
        features = vit(video, gaze)
        said = features.pool().float()
        _wait(device)
        seconds += time.perf_counter() - begun
        if said.ndim == 3:
            frame_cosines.append(F.cosine_similarity(said, dense.pooled[part].to(device), dim=-1).mean(1).cpu())
            said = said.mean(1)
        pooled.append(said.cpu())
        theirs = dense.maps[part].to(device).float()
        map_cosines.append(F.cosine_similarity(features.dense().float(), theirs, dim=2).mean((1, 2, 3)).cpu())
    said, theirs = torch.cat(pooled), dense.pooled.mean(1)
    near = F.normalize(said, dim=-1) @ F.normalize(theirs, dim=-1).T
    cosines = near.diagonal().tolist()
    found = (near.argmax(1) == torch.arange(len(near))).tolist()
    votes = vote(near, clips.groups, args.neighbours)
    count = sum(int(gaze.chosen.sum()) for gaze in gazes) / (len(clips) * clips.frames.shape[1])
    low, high = interval(cosines, clips.groups)
    finds_low, finds_high = interval([float(x) for x in found], clips.groups)
    return Row(
        name,
        way,
        plan.attention,
        vit.adapter is not None,
        per_frame,
        count,
        float(np.mean(cosines)),
        float(np.mean(found)),
        float(torch.cat(frame_cosines).mean()) if frame_cosines else None,
        float(torch.cat(map_cosines).mean()),
        votes,
        low,
        high,
        finds_low,
        finds_high,
        choose_ms,
        1000 * seconds / len(clips),
        [round(x, 5) for x in cosines],
        found,
    )


def vote(near: Tensor, groups: Sequence[str], neighbours: int) -> float:
    """How often the nearest dense clips, the clip itself left out, vote for its source, among clips that have a
    sibling."""
    near = near.clone().fill_diagonal_(-2.0)
    hits, asked = 0, 0
    for index, own in enumerate(groups):
        if sum(group == own for group in groups) < 2:
            continue
        asked += 1
        top = near[index].topk(min(neighbours, len(groups) - 1))
        score: dict[str, float] = {}
        for value, other in zip(top.values.tolist(), top.indices.tolist(), strict=True):
            score[groups[other]] = score.get(groups[other], 0.0) + value
        hits += max(score, key=lambda group: score[group]) == own
    return hits / max(1, asked)


def interval(values: Sequence[float], groups: Sequence[str]) -> tuple[float, float]:
    """95 % of the mean over draws of sources."""
    names = sorted(set(groups))
    of_group = [np.array([v for v, g in zip(values, groups, strict=True) if g == name]) for name in names]
    random = np.random.default_rng(0)
    sums, counts = np.array([x.sum() for x in of_group]), np.array([len(x) for x in of_group])
    drawn = random.integers(0, len(names), (DRAWS, len(names)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def line(row: Row) -> str:
    """One row of the table."""
    frame = "-" if row.frame is None else f"{row.frame:.3f}"
    where = "-" if row.map is None else f"{row.map:.3f}"
    return (
        f"| {row.chooser} | {row.way} | {row.patches:.1f} | {row.clip:.3f} | {row.finds:.0%} "
        f"({row.finds_low:.0%}-{row.finds_high:.0%}) | {frame} | {where} | {row.votes:.0%} | {row.choose_ms:.1f} | "
        f"{row.encode_ms:.1f} |"
    )


HEAD = (
    "| chooser | way | patches a frame | clip | finds itself | frame | map | source | choosing, ms | encoding, ms |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


def report(rows: list[Row], clips: ClipSet, args: argparse.Namespace, argv: Sequence[str] | None, device: torch.device):
    """Write the files, print the table and a last line of JSON."""
    data = {
        "what": "fidelity",
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "CPU",
        "torch": torch.__version__,
        "command": "python -m benchmarks.fidelity " + " ".join(argv or sys.argv[1:]),
        "model": Path(args.model).name,
        "clips": list(clips.names),
        "rows": [asdict(row) for row in rows],
    }
    table = "\n".join([HEAD, *(line(row) for row in rows)])
    if args.out is not None:
        write_text(args.out, json.dumps(data, indent=1))
        write_text(args.out.with_suffix(".md"), table + "\n")
    print(table)
    print(json.dumps({"rows": len(rows), "clips": len(clips)}))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.fidelity", description=__doc__.splitlines()[0])
    parser.add_argument("model", help="timm name, hub id or folder of the ViT")
    parser.add_argument("--data", type=Path, default=Path("../shared/videos"))
    parser.add_argument("--split", default="test", help="folder inside --data; '' for --data itself")
    parser.add_argument("--size", type=int, help="pixels a side (default: what the ViT was trained on)")
    parser.add_argument("--choosers", nargs="+", default=["random", "difference", "autogaze-base"])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), metavar="WAY")
    parser.add_argument("--patches", type=float, nargs="+", default=[13, 26, 53], help="mean patches a frame")
    parser.add_argument("--adapter", type=Path, help="file of `autogaze adapt`: measured beside the frozen ViT")
    parser.add_argument("--neighbours", type=int, default=3, help="of the vote on the source")
    parser.add_argument("--limit", type=int, help="at most so many clips")
    parser.add_argument("--batch", type=int, default=8, help="clips at a time")
    parser.add_argument("--device")
    parser.add_argument("--out", type=Path, help="JSON file; a table is written beside it")
    return parser


if __name__ == "__main__":
    sys.exit(main())
