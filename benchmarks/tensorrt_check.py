"""TensorRT on this machine: builds engines, runs them, compares ids and times with PyTorch, prints a table.

    python -m benchmarks.tensorrt_check                          the shipped model, three precisions, batches 1 and 8
    python -m benchmarks.tensorrt_check --out trt.json           and keep it as JSON
    python -m benchmarks.tensorrt_check --no-tensorrt --quick    the same with ONNX Runtime on a CPU: tries the script

Needs an NVIDIA GPU and `pip install tensorrt` (data-centre and other GPUs) or `pip install 'autogaze[trt]'` (RTX GPUs).
Please send the table back. Every row stands for itself: where a build or a run fails it says why and the next one
follows. Ids are compared with float32 PyTorch on the CPU on rendered scenes, slot by slot, also after sequences have
parted; `memory` is what the engine with its streams adds to the GPU's use.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from autogaze import AutoGaze
from autogaze.export import Engine
from autogaze.export.engine_file import find_tensorrt
from autogaze.export.onnx import ExportOptions, export_onnx
from autogaze.export.parity import ParityError, scenes
from autogaze.export.tensorrt import BuildError, BuildOptions, export_tensorrt
from benchmarks.export import agreement
from benchmarks.timing import machine, measure

FRAMES = 16
FAILURES = (BuildError, ParityError, RuntimeError, ValueError, OSError)  # of a row


def build(model: AutoGaze, path: Path, options: ExportOptions, tensorrt: bool) -> dict[str, Any]:
    """Write one file; how long that took, and what it is."""
    begun = time.perf_counter()
    if tensorrt:
        report = export_tensorrt(
            model, path, options, BuildOptions(), lambda phase: print(f"  {phase}", file=sys.stderr)
        )
        facts: dict[str, Any] = {"runtime": f"{report.runtime} {report.version}", "log": list(report.log)}
    else:
        export_onnx(model, path, options)
        facts = {"runtime": "onnxruntime"}
    return facts | {"build_s": time.perf_counter() - begun, "file_mib": path.stat().st_size / 2**20}


def run(checkpoint: str, model: AutoGaze, path: Path, batches: list[int], device: torch.device) -> dict[str, Any]:
    """Open one file; ids and times of it beside PyTorch's."""
    used = _used(device)
    engine = Engine.load(path, device)
    clips = scenes(engine.metadata, 2, FRAMES)
    video = engine.metadata.preprocessor(clips)
    ratio = engine.metadata.gazing_ratio
    equal, slots = agreement(model.generate(video, ratio), engine.generate(video, ratio))
    twin = AutoGaze.from_pretrained(checkpoint, str(device)) if device.type == "cuda" else model
    times = []
    for batch in batches:
        frame = torch.randn(batch, 3, *engine.metadata.input_size, device=device)
        row: dict[str, Any] = {"batch": batch}
        for name, stream in (("pytorch", twin.stream(ratio, batch=batch)), ("file", engine.stream(ratio, batch=batch))):
            row[name] = asdict(measure(name, partial(stream.step, frame), device, 40, 20))
        times.append(row)
    return {"slots": slots, "equal": equal, "frame": times, "memory_mib": (_used(device) - used) / 2**20}


def _used(device: torch.device) -> int:
    """Bytes of GPU memory in use, by anybody."""
    if device.type != "cuda":
        return 0
    free, whole = torch.cuda.mem_get_info(device)
    return whole - free


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as Markdown."""
    lines = [
        "| precision | runtime | build, s | ids equal | ms a frame at batch: file / PyTorch | memory, MiB |",
        "|---" * 6 + "|",
    ]
    for row in rows:
        if "failed" in row:
            lines.append(f"| {row['precision']} | failed: {row['failed']} | | | | |")
            continue
        times = ", ".join(
            f"{one['batch']}: {one['file']['median_ms']:.2f} / {one['pytorch']['median_ms']:.2f}"
            for one in row["frame"]
        )
        share = f"{row['equal'] / max(1, row['slots']):.2%} of {row['slots']}"
        lines.append(
            f"| {row['precision']} | {row['runtime']} | {row['build_s']:.1f} | {share} | {times} "
            f"| {row['memory_mib']:.0f} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="autogaze-base")
    parser.add_argument("--gazing-ratio", type=float, default=0.1)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "fp16", "bf16"], choices=["fp32", "fp16", "bf16"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--no-tensorrt", action="store_true", help="try the script with ONNX Runtime on a CPU")
    parser.add_argument("--quick", action="store_true", help="fp32, batch 1")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    tensorrt = not args.no_tensorrt
    if args.quick:
        args.precisions, args.batch = ["fp32"], [1]
    if tensorrt:
        try:
            find_tensorrt()
        except ImportError as error:
            parser.error(str(error))
        if not torch.cuda.is_available():
            parser.error("there is no CUDA GPU here, and TensorRT runs on nothing else")
    device = torch.device("cuda" if tensorrt else "cpu")
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32 on both sides
    model = AutoGaze.from_pretrained(args.checkpoint, "cpu")
    rows: list[dict[str, Any]] = []
    result = {"machine": machine(), "command": " ".join(sys.argv), "rows": rows}
    for precision in args.precisions:
        print(precision, file=sys.stderr)
        row: dict[str, Any] = {"precision": precision}
        rows.append(row)
        options = ExportOptions(precision=precision, gazing_ratio=args.gazing_ratio, batch=(1, max([2, *args.batch])))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / ("gaze.engine" if tensorrt else "gaze.onnx")
            try:
                row |= build(model, path, options, tensorrt)
                row |= run(args.checkpoint, model, path, args.batch, device)
            except FAILURES as error:
                row["failed"] = f"{type(error).__name__}: {error}"
        if args.out:
            args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result["machine"]))
    print(table(rows))
    return 1 if any("failed" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
