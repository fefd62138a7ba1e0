"""bfloat16 against float32 on real clips: how many patches are the same, and what the others cost.

    python -m benchmarks.precision --checkpoint autogaze-base --data VIDEOS/test --out benchmarks/results/FILE.json

The same clips are gazed at with float32 and with bfloat16 weights, at equal ratios, on the fastest path of each; the
judge tells the losses in float32. A clip whose gaze takes another way after one different id may end with a loss that
is some percent higher or lower, so the mean needs many clips: videos are taken once for every `--strides` (0: frames
spread over the video), and the standard error of the difference is given, over sources, whose clips err together.
The JSON is the last line of stdout.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from autogaze.evaluate.clips import ClipSet, load_clips
from autogaze.evaluate.evaluation import load_reconstructor
from autogaze.files import write_json
from autogaze.model import AutoGaze
from autogaze.pretrain.judge import Judge
from benchmarks.timing import machine


@dataclass(frozen=True, eq=False)
class Clips:
    """Results of both models on clips at one ratio."""

    full: Tensor  # (N,) float, mean loss over a clip's frames with float32 weights
    half: Tensor  # (N,) with bfloat16 weights
    same: Tensor  # (N,) share of the patches of the float32 gaze that the other one has too


@dataclass(frozen=True)
class Agreement:
    """One ratio and way of taking frames, or all ways together."""

    ratio: float
    stride: int | None  # 0: spread over the video; None: all together
    clips: int
    float32_loss: float
    bfloat16_loss: float
    loss_above: float  # share of the float32 loss
    standard_error: float  # of that
    same_patches: float


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    full = AutoGaze.from_pretrained(args.checkpoint, device=device).eval()
    half = AutoGaze.from_pretrained(args.checkpoint, device=device).to(torch.bfloat16).eval()
    judge = Judge(load_reconstructor(args.reconstructor)).to(device)
    taken = {
        stride: load_clips(args.data, full.grid, full.preprocessor, args.frames, stride or None, args.clips)
        for stride in args.strides
    }
    rows = []
    for ratio in args.ratios:
        found = {
            stride: compare(full, half, judge, clips, ratio, args.batch_clips, device)
            for stride, clips in taken.items()
        }
        groups = [group for clips in taken.values() for group in clips.groups]
        together = Clips(
            *(torch.cat([getattr(part, name) for part in found.values()]) for name in ("full", "half", "same"))
        )
        new = [agreement(ratio, stride, part, taken[stride].groups) for stride, part in found.items()]
        new.append(agreement(ratio, None, together, groups))
        for row in new:
            print(row, file=sys.stderr)
        rows += new
    result = {
        "what": "precision",
        "machine": machine(),
        "frames": args.frames,
        "data": args.data.name,
        "rows": [asdict(row) for row in rows],
    }
    if args.out is not None:
        write_json(args.out, result)
    print(json.dumps(result))
    return 0


@torch.inference_mode()
def compare(
    full: AutoGaze, half: AutoGaze, judge: Judge, clips: ClipSet, ratio: float, batch: int, device: torch.device
) -> Clips:
    """Gaze at all clips with both models and judge both gazes."""
    parts = []
    for _, video in clips.batches(batch, device):
        one, other = full.generate(video, gazing_ratio=ratio), half.generate(video.bfloat16(), gazing_ratio=ratio)
        both = one.patch_mask() & other.patch_mask()
        parts.append(
            (
                judge.losses(video, one).mean(1),
                judge.losses(video, other).mean(1),
                both.sum((1, 2)) / one.counts.sum(1).clamp(min=1),
            )
        )
    return Clips(*(torch.cat(part).cpu() for part in zip(*parts, strict=True)))


def agreement(ratio: float, stride: int | None, clips: Clips, groups: Sequence[str]) -> Agreement:
    """Means over clips; the error from how far the sums of whole sources are from what their sizes would have."""
    mean, above = float(clips.full.mean()), clips.half - clips.full
    names = {name: number for number, name in enumerate(dict.fromkeys(groups))}
    index = torch.tensor([names[name] for name in groups])
    sums = torch.zeros(len(names)).index_add(0, index, above - above.mean())
    error = float((sums.square().sum() * len(names) / max(1, len(names) - 1)).sqrt()) / len(above)
    return Agreement(
        ratio,
        stride,
        len(above),
        mean,
        float(clips.half.mean()),
        float(above.mean()) / mean,
        error / mean,
        float(clips.same.mean()),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", required=True, help="a run, a folder, or a shipped name")
    parser.add_argument("--reconstructor", help="folder of the judge (default: the shipped one)")
    parser.add_argument("--data", required=True, type=Path, help="folder of videos")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.02, 0.05, 0.1, 0.2, 0.4], help="gazing ratios")
    parser.add_argument(
        "--strides",
        type=int,
        nargs="+",
        default=[0, 1, 2, 3],
        help="ways of taking frames: every STRIDE-th, 0: spread over the video (default 0 1 2 3)",
    )
    parser.add_argument("--clips", type=int, help="use only so many videos of the folder")
    parser.add_argument("--frames", type=int, default=16, help="frames a clip (default 16)")
    parser.add_argument("--batch-clips", type=int, default=16, help="clips a pass (default 16)")
    parser.add_argument("--device", help="cpu or cuda; by default cuda where there is one")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    return parser


if __name__ == "__main__":
    sys.exit(main())
