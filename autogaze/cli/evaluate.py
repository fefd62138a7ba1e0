"""`autogaze evaluate --data DIR`: reconstruction loss against gazing ratio, beside other ways to choose patches.

Leaves DIR/results.json (everything, with confidence), tables.md and losses.png in the folder given by --out.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from autogaze.checkpoint import DEFAULT_CHECKPOINT
from autogaze.device import pick_device
from autogaze.evaluate.clips import load_clips
from autogaze.evaluate.evaluation import ORACLE_RATIOS, RATIOS, Plan, evaluate, load_reconstructor
from autogaze.evaluate.measurement import Evaluator
from autogaze.evaluate.methods import known_methods, make_methods
from autogaze.evaluate.plot import plot_losses
from autogaze.evaluate.results import Results
from autogaze.evaluate.table import markdown
from autogaze.files import write_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="folder of videos, searched with its sub-folders"
    )
    parser.add_argument(
        "--checkpoint",
        action="append",
        metavar="[LABEL=]X",
        help=f"shipped name, folder, run or hub id; may be repeated, weak to strong (default {DEFAULT_CHECKPOINT})",
    )
    parser.add_argument(
        "--reconstructor", metavar="R", help="folder of the reconstructor that judges (default: the shipped one)"
    )
    parser.add_argument(
        "--against",
        type=_names,
        default=("random", "difference"),
        metavar="A,B,...",
        help=f"comma-separated, of {', '.join(known_methods())} (default random,difference)",
    )
    parser.add_argument(
        "--ratios",
        type=_numbers,
        default=RATIOS,
        metavar="R,R,...",
        help=f"largest shares of a frame's patches (default {','.join(map(str, RATIOS))})",
    )
    parser.add_argument(
        "--oracle-ratios",
        type=_numbers,
        default=ORACLE_RATIOS,
        metavar="R,R,...",
        help=f"ratios at which the oracle runs too (default {','.join(map(str, ORACLE_RATIOS))})",
    )
    parser.add_argument(
        "--requirement",
        action="store_true",
        help="also let the networks decide how much to look at, for the dense loss + 10 %%",
    )
    parser.add_argument("--frames", type=int, default=16, help="frames of every clip (default 16)")
    parser.add_argument("--stride", type=int, help="take every STRIDE-th frame (default: evenly over the clip)")
    parser.add_argument("--limit", type=int, metavar="N", help="at most N clips, spread over the folder (default: all)")
    parser.add_argument("--batch", type=int, default=8, help="clips at once (default 8)")
    parser.add_argument("--seed", type=int, default=0, help="of methods that draw (default 0)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write results.json, tables.md and losses.png there")
    parser.add_argument("--json", action="store_true", help="print the means as JSON on the last line of stdout")


def run(args: argparse.Namespace) -> int:
    results = evaluate_folder(args)
    text = markdown(results)
    if args.out is not None:
        results.save(args.out / "results.json")
        write_text(args.out / "tables.md", text)
        plot_losses(results, args.out / "losses.png")
        print(f"wrote results.json, tables.md and losses.png to {args.out}", file=sys.stderr)
    print(text, file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps(summary(results)))
    return 0


def evaluate_folder(args: argparse.Namespace) -> Results:
    """Load what the command line names and measure it."""
    plan = Plan(
        tuple(args.ratios),
        tuple(args.oracle_ratios),
        args.requirement,
        args.data.resolve().name,
        sampling_in_words(args.stride),
    )
    device = pick_device(args.device)
    reconstructor = load_reconstructor(args.reconstructor).to(device)
    methods = make_methods(args.checkpoint or [DEFAULT_CHECKPOINT], args.against, reconstructor, device)
    preprocessor = next((method.model.preprocessor for method in methods if method.model is not None), None)
    clips = load_clips(args.data, reconstructor.grid, preprocessor, args.frames, args.stride, args.limit)
    return evaluate(methods, Evaluator(reconstructor, clips, device, args.batch, args.seed), plan)


def sampling_in_words(stride: int | None) -> str:
    """Which frames of a clip are taken."""
    return "evenly over the clip" if stride is None else f"every {stride}. frame from its start"


def summary(results: Results) -> dict[str, object]:
    """Means by method and ratio, for programs."""
    rows = [
        {
            "method": row.method,
            "gazing_ratio": row.gazing_ratio,
            "spent": row.spent,
            "loss": row.loss.value,
            "loss_low": row.loss.low,
            "loss_high": row.loss.high,
            "psnr_db": row.psnr.value,
            "ssim": row.ssim.value,
            "paste_psnr_db": row.paste_psnr.value,
            "paste_ssim": row.paste_ssim.value,
        }
        for row in results.rows
    ]
    return {"clips": results.protocol.clips, "dense_loss": results.dense_loss, "rows": rows}


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = [name for name in names if name not in known_methods()]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown {', '.join(unknown)}; there are {', '.join(known_methods())}")
    return names


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(sorted(float(part) for part in text.split(",") if part.strip()))
