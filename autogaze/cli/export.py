"""`autogaze export CHECKPOINT --onnx FILE | --trt FILE`: one file, checked before it is kept."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from autogaze.export.onnx import ExportOptions, OnnxReport, export_onnx
from autogaze.export.parity import Parity, ParityError
from autogaze.export.tensorrt import HARDWARE, BuildError, BuildOptions, EngineReport, export_tensorrt
from autogaze.export.triton import write_repository
from autogaze.model import AutoGaze


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="shipped name, folder, run of `autogaze train`, or hub id")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--onnx", type=Path, metavar="FILE", help="write an ONNX file")
    target.add_argument("--trt", type=Path, metavar="FILE", help="build a TensorRT engine")
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
    build = parser.add_argument_group("with --trt", "all but the workspace are for the tensorrt package only")
    build.add_argument("--workspace-mib", type=int, metavar="MIB", help="scratch memory in MiB (default: no limit)")
    build.add_argument("--timing-cache", type=Path, metavar="FILE", help="kernel timings, read and written")
    build.add_argument("--version-compatible", action="store_true", help="run with later TensorRT versions too")
    build.add_argument("--hardware", default="this", choices=list(HARDWARE), help="GPUs to run on (default: this one)")


def run(args: argparse.Namespace) -> int:
    build = BuildOptions(args.workspace_mib, args.timing_cache, args.version_compatible, args.hardware)
    if args.onnx and build != BuildOptions():
        raise ValueError("--workspace-mib, --timing-cache, --version-compatible and --hardware go with --trt")
    options = ExportOptions(
        clip=args.clip,
        precision=args.precision,
        gazing_ratio=args.gazing_ratio,
        batch=args.batch,
        frames=args.frames,
        scales=None if args.scales is None else tuple(args.scales),
        input_size=args.uint8,
    )
    model = AutoGaze.from_pretrained(args.checkpoint, "cpu")
    try:
        report = export_onnx(model, args.onnx, options) if args.onnx else _build(model, args.trt, options, build)
    except (ParityError, BuildError) as error:
        print(f"autogaze: {error}", file=sys.stderr)
        return 2
    print(_words(report), file=sys.stderr)
    if args.triton is not None:
        print(f"{write_repository(Path(report.path), args.triton)}: Triton model repository", file=sys.stderr)
    if args.json:
        print(json.dumps({**asdict(report), "metadata": report.metadata.to_properties()}))
    return 0


def _build(model: AutoGaze, path: Path, options: ExportOptions, build: BuildOptions) -> EngineReport:
    return export_tensorrt(model, path, options, build, lambda phase: print(f"{phase} ...", file=sys.stderr))


def _words(report: OnnxReport | EngineReport) -> str:
    metadata = report.metadata
    what = f"{metadata.kind} graph, {metadata.precision}, up to {metadata.budget} ids a frame"
    if isinstance(report, OnnxReport):
        return f"{report.path}: {what}, {report.nodes} nodes, opset {report.opset}; {_share(report.parity)}"
    line = f"{report.path}: {what}, {report.runtime} {report.version}, {report.bytes / 2**20:.1f} MiB"
    if report.engine_parity is None:
        return f"{line}; its graph {_share(report.graph_parity)}; there is no GPU here to run the engine itself"
    return f"{line}; {_share(report.engine_parity)}"


def _share(parity: dict[int, Parity]) -> str:
    worst = min(parity.values(), key=lambda one: one.share)
    batches = " and ".join(map(str, parity))
    return f"at batch {batches} {worst.share:.1%} of {worst.slots} slots equal PyTorch's"


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
