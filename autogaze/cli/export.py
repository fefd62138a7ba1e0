"""`autogaze export CHECKPOINT --onnx FILE | --trt FILE`: one file, checked before it is kept."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from autogaze.export.onnx import ExportOptions
from autogaze.export.parity import ParityError
from autogaze.export.targets import TARGETS
from autogaze.export.tensorrt import HARDWARE, BuildError, BuildOptions
from autogaze.export.triton import check_servable, write_repository
from autogaze.model import AutoGaze


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="shipped name, folder, run of `autogaze train`, or hub id")
    target = parser.add_mutually_exclusive_group(required=True)
    for one in TARGETS:
        if one.option is not None:
            target.add_argument(f"--{one.option}", type=Path, metavar="FILE", help=one.help)
    add = parser.add_argument
    add("--precision", default="fp32", choices=["fp32", "fp16", "bf16"], help="of weights and memory (default fp32)")
    add(
        "--gazing-ratio",
        type=float,
        metavar="R",
        help="largest share of a frame's patches, in (0, 1] (default: the checkpoint's)",
    )
    add(
        "--batch",
        type=_batch,
        default=(1, 16),
        metavar="N[:M]",
        help="batch size, or smallest and largest (default 1:16)",
    )
    add("--scales", type=int, nargs="+", metavar="PX", help="choose only ids of these scales (default: all)")
    add("--clip", action="store_true", help="take whole clips instead of one frame a call")
    add("--frames", type=int, metavar="T", help="frames a clip, with --clip (default: what the model remembers)")
    add(
        "--uint8",
        type=_size,
        metavar="HxW",
        help="take uint8 frames of this size in pixels, preprocess inside (default: float frames)",
    )
    add("--triton", type=Path, metavar="DIR", help="also write a Triton Inference Server model repository")
    _add_build_arguments(parser)
    add("--json", action="store_true", help="print one line of JSON")


def _add_build_arguments(parser: argparse.ArgumentParser) -> None:
    build = parser.add_argument_group(
        "with --trt", "timing cache, version compatibility and hardware are options of the tensorrt package only"
    )
    build.add_argument("--workspace-mib", type=int, metavar="MIB", help="scratch memory in MiB (default: no limit)")
    build.add_argument("--tuned-batch", type=int, metavar="N", help="choose kernels for this batch (default: largest)")
    build.add_argument("--timing-cache", type=Path, metavar="FILE", help="kernel timings, read and written")
    build.add_argument("--version-compatible", action="store_true", help="run with later TensorRT versions too")
    build.add_argument("--hardware", default="this", choices=list(HARDWARE), help="GPUs to run on (default: this one)")


def run(args: argparse.Namespace) -> int:
    target, path = next((t, getattr(args, t.option)) for t in TARGETS if t.option and getattr(args, t.option))
    build = BuildOptions(
        args.workspace_mib, args.timing_cache, args.version_compatible, args.hardware, args.tuned_batch
    )
    if target.option != "trt" and build != BuildOptions():
        raise ValueError(
            "--workspace-mib, --timing-cache, --tuned-batch, --version-compatible and --hardware go with --trt"
        )
    options = ExportOptions(
        clip=args.clip,
        precision=args.precision,
        gazing_ratio=args.gazing_ratio,
        batch=args.batch,
        frames=args.frames,
        scales=None if args.scales is None else tuple(args.scales),
        input_size=args.uint8,
    )
    if args.triton is not None:
        check_servable(options, path)
    model = AutoGaze.from_pretrained(args.checkpoint, "cpu")
    try:
        report = target.write(model, path, options, build, lambda phase: print(f"{phase} ...", file=sys.stderr))
    except (ParityError, BuildError) as error:
        print(f"autogaze: {error}", file=sys.stderr)
        return 2
    print(report.words(), file=sys.stderr)
    if args.triton is not None:
        print(f"{write_repository(Path(report.path), args.triton)}: Triton model repository", file=sys.stderr)
    if args.json:
        print(json.dumps({**asdict(report), "metadata": report.metadata.to_properties()}))  # type: ignore[call-overload]
    return 0


def _batch(text: str) -> tuple[int, int]:
    low, _, high = text.partition(":")
    try:
        return int(low), int(high or low)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected N or N:M, got {text!r}") from None


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    try:
        return int(height), int(width)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH in pixels, got {text!r}") from None
