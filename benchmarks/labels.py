"""Greedy labels, fast against exact: how much loss the fast search gives away at equal budgets, and how much it saves.

    python -m benchmarks.labels --reconstructor RUN/reconstructor --data VIDEOS [--clips 20] [--out FILE.json]

Both modes search the same validation clips with the same budgets (mean ratio 0.07, uneven over clips and frames), with
the same batches; the loss compared is that of each frame after its last pick. Random gazes with these budgets are
the other end. The fast search keeps a GPU busy only with many clips, the exact one with few: with `--copies N` the
fast one is also timed on N copies of all clips and budgets at once. The JSON is the last line of stdout.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from autogaze.files import write_json
from autogaze.pretrain.labels.greedy import GreedySettings, greedy_gaze
from autogaze.pretrain.labels.make import draw_budgets
from autogaze.pretrain.reconstructor.gaze_mix import top_of
from autogaze.pretrain.reconstructor.network import Reconstructor
from autogaze.training.data.batches import ClipData
from benchmarks.timing import machine


@dataclass(frozen=True)
class LabelTiming:
    """One way of searching, on all clips."""

    name: str
    clips: int
    seconds: float
    clips_a_minute: float
    loss: float  # mean over frames, after the last pick


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if min(args.clips, args.frames, args.batch_clips, args.at_once) < 1 or args.copies < 0:
        print(
            "labels: --clips, --frames, --batch-clips and --at-once must be positive, --copies not negative",
            file=sys.stderr,
        )
        return 2
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = Reconstructor.from_pretrained(args.reconstructor, device)
    data = ClipData(args.data, frames=args.frames, size=model.grid.height_px, validate_clips=args.clips, resident_gib=0)
    video = data.render(data.validation_recipes(), device).video
    generator = torch.Generator().manual_seed(args.seed)
    budgets = draw_budgets(args.mean_ratio, len(video), args.frames, model.grid, generator).to(device)
    ways = {"exact": GreedySettings(mode="exact", at_once=args.at_once)}
    for text in args.fast:
        *counts, worth = text.split(",")
        ways[f"fast {text}"] = GreedySettings("fast", *map(int, counts), worth=float(worth), at_once=args.at_once)
    ways["fast"] = GreedySettings(at_once=args.at_once)
    if args.no_exact:
        del ways["exact"]
    warm = max(1, min(2, len(video)))
    _search(model, video[:warm, :2], budgets[:warm, :2].clamp(max=2), GreedySettings(), device)
    timings = []
    for name, settings in ways.items():
        timings.append(measure(name, model, video, budgets, settings, device, args.batch_clips))
        print(f"{name}: {timings[-1]}", file=sys.stderr)
    if args.copies:
        many = torch.arange(len(video), device=device).repeat(args.copies)
        name = f"fast, {len(many)} side by side"
        timings.append(measure(name, model, video[many], budgets[many], ways["fast"], device, len(many)))
        print(timings[-1], file=sys.stderr)
    blind = torch.rand(*budgets.shape, model.grid.patches_per_frame, generator=generator).to(device)
    with torch.no_grad():
        random_loss = model.reconstruct(video, top_of(blind, budgets)).loss.mean().item()
    result = summary(timings, random_loss, budgets, args, model)
    if args.out is not None:
        write_json(args.out, result)
    print(json.dumps(result))
    return 0


def measure(
    name: str,
    model: Reconstructor,
    video: Tensor,
    budgets: Tensor,
    settings: GreedySettings,
    device: torch.device,
    batch: int,
) -> LabelTiming:
    """Search all clips, batch by batch."""
    start, losses = time.perf_counter(), []
    for part, budget in zip(video.split(batch), budgets.split(batch), strict=True):
        losses.append(_search(model, part, budget, settings, device))
    seconds = time.perf_counter() - start
    rate = round(60 * len(video) / seconds, 2)
    return LabelTiming(name, len(video), round(seconds, 3), rate, torch.cat(losses).mean().item())


def _search(
    model: Reconstructor, video: Tensor, budgets: Tensor, settings: GreedySettings, device: torch.device
) -> Tensor:
    """(B, T) loss after the last pick of each frame."""
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        found = greedy_gaze(model, video, budgets, settings)
    loss = found.loss.gather(2, budgets[..., None])[..., 0].float()
    return loss.cpu()  # waits for the device


def summary(
    timings: Sequence[LabelTiming], random_loss: float, budgets: Tensor, args: argparse.Namespace, model: Reconstructor
) -> dict[str, object]:
    """The result as JSON; gap and speed-up where exact was measured."""
    exact = next((timing for timing in timings if timing.name == "exact"), None)
    rows = []
    for timing in timings:
        row: dict[str, object] = asdict(timing)
        if exact is not None and timing is not exact:
            row["times_faster"] = timing.clips_a_minute / exact.clips_a_minute
            row["loss_above_exact"] = timing.loss / exact.loss - 1
        rows.append(row)
    return {
        "what": "labels",
        "machine": machine(),
        "clips": len(budgets),
        "frames": args.frames,
        "mean_ratio": budgets.float().mean().item() / model.grid.patches_per_frame,
        "random_loss": random_loss,
        "searches": rows,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.labels", description=__doc__.split("\n")[0])
    parser.add_argument("--reconstructor", required=True, type=Path, help="folder of a trained reconstructor")
    parser.add_argument("--data", required=True, type=Path, help="folder of videos; its validation split is searched")
    parser.add_argument("--clips", type=int, default=20, help="clips to search (default 20)")
    parser.add_argument("--frames", type=int, default=16, help="frames a clip (default 16)")
    parser.add_argument("--mean-ratio", type=float, default=0.07, help="mean gazing ratio (default 0.07)")
    parser.add_argument("--batch-clips", type=int, default=32, help="clips searched side by side (default 32)")
    parser.add_argument("--at-once", type=int, default=1024, help="frames reconstructed in one batch (default 1024)")
    parser.add_argument(
        "--fast",
        nargs="*",
        default=[],
        metavar="CANDIDATES,PICKS,SHARE,WORTH",
        help="further fast settings to try, such as 2,2,16,0.7",
    )
    parser.add_argument("--copies", type=int, default=0, metavar="N", help="also time the fast search on N copies")
    parser.add_argument("--no-exact", action="store_true", help="leave the exact search out: minutes on a GPU")
    parser.add_argument("--seed", type=int, default=0, help="of the budgets (default 0)")
    parser.add_argument("--device", help="cpu or cuda; by default cuda where there is one")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    return parser


if __name__ == "__main__":
    sys.exit(main())
