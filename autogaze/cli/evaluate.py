"""`autogaze evaluate --data DIR`: reconstruction loss against gazing ratio, beside other ways to choose patches.

With --features MODEL also how far the features of pretrained ViTs are from those of the true frames, on clean clips
and on clips with noise, flicker, shake or a second compression. Leaves results.json (everything, with confidence),
tables.md, losses.png and features.png in the folder given by --out.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from autogaze.checkpoint import DEFAULT_CHECKPOINT
from autogaze.device import pick_device
from autogaze.evaluate.clips import load_clips
from autogaze.evaluate.disturbances import DISTURBANCES, check_disturbances
from autogaze.evaluate.evaluation import ORACLE_RATIOS, RATIOS, Plan, evaluate, load_reconstructor, load_viewers
from autogaze.evaluate.feature_table import feature_tables
from autogaze.evaluate.measurement import Evaluator
from autogaze.evaluate.methods import known_methods, make_methods
from autogaze.evaluate.plot import plot_features, plot_losses
from autogaze.evaluate.results import Results
from autogaze.evaluate.table import markdown
from autogaze.files import check_folder, write_text


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
    add_feature_arguments(parser)
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
    parser.add_argument("--out", type=Path, metavar="DIR", help="write results.json, tables.md and plots there")
    parser.add_argument("--json", action="store_true", help="print the means as JSON on the last line of stdout")


def add_feature_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of a judge by features; `benchmarks.quality` has the same."""
    parser.add_argument(
        "--features",
        action="append",
        default=[],
        metavar="[LABEL=]MODEL",
        help="also judge by the features of this ViT: a folder, hub id or timm name; may be repeated",
    )
    parser.add_argument(
        "--disturb",
        type=_disturbances,
        default=tuple(DISTURBANCES),
        metavar="A,B,...",
        help=f"with --features: disturbed clips too, of {', '.join(DISTURBANCES)}; none for clean ones alone "
        "(default: all)",
    )
    parser.add_argument(
        "--disturbed-ratios",
        type=_numbers,
        default=ORACLE_RATIOS,
        metavar="R,R,...",
        help=f"ratios on disturbed clips (default {','.join(map(str, ORACLE_RATIOS))})",
    )


def wanted_disturbances(args: argparse.Namespace) -> tuple[str, ...]:
    """Those that the command line asks for; none without a judge that sees them."""
    return tuple(args.disturb) if args.features else ()


def run(args: argparse.Namespace) -> int:
    args.out = None if args.out is None else check_folder(args.out)
    results = evaluate_folder(args)
    if args.out is not None:
        results.save(args.out / "results.json")
        results = Results.load(args.out / "results.json")  # tables say what the file says, to the last digit
    text = "\n".join(filter(None, [markdown(results), feature_tables(results)]))
    if args.out is not None:
        write_text(args.out / "tables.md", text)
        plot_losses(results, args.out / "losses.png")
        if results.features:
            plot_features(results, args.out / "features.png")
        print(f"wrote {', '.join(sorted(path.name for path in args.out.iterdir()))} to {args.out}", file=sys.stderr)
    print(text, file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps(summary(results)))
    return 0


def evaluate_folder(args: argparse.Namespace) -> Results:
    """Load what the command line names and measure it."""
    plan = Plan(
        tuple(args.ratios),
        tuple(args.oracle_ratios),
        wanted_disturbances(args),
        tuple(args.disturbed_ratios),
        args.requirement,
        args.data.resolve().name,
        sampling_in_words(args.stride),
    )
    if args.batch < 1:
        raise ValueError(f"batch must be positive, got {args.batch}")
    device = pick_device(args.device)
    reconstructor = load_reconstructor(args.reconstructor).to(device)
    viewers = load_viewers(args.features, device)
    search = viewers[0].distance if viewers else None
    methods = make_methods(args.checkpoint or [DEFAULT_CHECKPOINT], args.against, reconstructor, device, search)
    preprocessor = next((method.model.preprocessor for method in methods if method.model is not None), None)
    clips = load_clips(args.data, reconstructor.grid, preprocessor, args.frames, args.stride, args.limit)
    return evaluate(methods, Evaluator(reconstructor, clips, device, args.batch, args.seed), plan, viewers)


def sampling_in_words(stride: int | None) -> str:
    """A line on which frames of a clip are taken."""
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
    found = {"clips": results.protocol.clips, "dense_loss": results.dense_loss, "rows": rows}
    features = [
        {
            "features": row.viewer,
            "disturbance": row.disturbance,
            "method": row.method,
            "gazing_ratio": row.gazing_ratio,
            "picture": row.picture,
            "patch": row.patch.value,
            "patch_low": row.patch.low,
            "patch_high": row.patch.high,
            "pooled": row.pooled.value,
        }
        for row in results.features
    ]
    return found | ({"features": features} if features else {})


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = [name for name in names if name not in known_methods()]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown {', '.join(unknown)}; there are {', '.join(known_methods())}")
    return names


def _disturbances(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip() not in ("", "none"))
    try:
        check_disturbances(names)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return names


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(sorted(float(part) for part in text.split(",") if part.strip()))
