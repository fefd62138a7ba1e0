"""`autogaze export CHECKPOINT --onnx FILE | --trt FILE`: one file, checked before it is kept."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from autogaze.export.onnx import ExportOptions, OnnxReport, export_onnx
from autogaze.model import AutoGaze


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="shipped name, folder, run of `autogaze train`, or hub id")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--onnx", type=Path, metavar="FILE", help="write an ONNX file")
    target.add_argument("--trt", type=Path, metavar="FILE", help="build a TensorRT engine")
    parser.add_argument(
        "--precision", default="fp32", choices=["fp32", "fp16", "bf16"], help="of weights and memory (default fp32)"
    )
    parser.add_argument(
        "--gazing-ratio",
        type=float,
        metavar="R",
        help="largest share of a frame's patches, in (0, 1] (default: the checkpoint's)",
    )
    parser.add_argument(
        "--batch",
        type=_batch,
        default=(1, 16),
        metavar="N[:M]",
        help="batch size, or smallest and largest (default 1:16)",
    )
    parser.add_argument("--clip", action="store_true", help="take whole clips instead of one frame a call")
    parser.add_argument(
        "--frames", type=int, metavar="T", help="frames a clip, with --clip (default: what the model remembers)"
    )
    parser.add_argument(
        "--uint8",
        type=_size,
        metavar="HxW",
        help="take uint8 frames of this size in pixels and preprocess them inside (default: float frames)",
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON")


def run(args: argparse.Namespace) -> int:
    options = ExportOptions(
        clip=args.clip,
        precision=args.precision,
        gazing_ratio=args.gazing_ratio,
        batch=args.batch,
        frames=args.frames,
        input_size=args.uint8,
    )
    model = AutoGaze.from_pretrained(args.checkpoint, "cpu")
    report = export_onnx(model, args.onnx, options)
    print(_words(report), file=sys.stderr)
    if args.json:
        print(json.dumps({**asdict(report), "metadata": report.metadata.to_properties()}))
    return 0


def _words(report: OnnxReport) -> str:
    worst = min(report.parity.values(), key=lambda parity: parity.share)
    batches = " and ".join(map(str, report.parity))
    return (
        f"{report.path}: {report.metadata.kind} graph, {report.metadata.precision}, {report.nodes} nodes, "
        f"opset {report.opset}, up to {report.metadata.budget} ids a frame; "
        f"at batch {batches} {worst.share:.1%} of {worst.slots} slots equal PyTorch's"
    )


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
