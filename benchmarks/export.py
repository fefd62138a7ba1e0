"""Exported ONNX files in ONNX Runtime and OpenVINO: parity with PyTorch, nodes that fall to the CPU, times.

    python -m benchmarks.export --out benchmarks/results/<date>-<device>-export.json
    python -m benchmarks.export --quick                        a tiny model on the CPU, a minute
    python -m benchmarks.export --data DIR --clips 200         parity on real clips besides rendered scenes

Times are of one frame of a stream, memory on the device, beside PyTorch's own stream in the file's precision (float32
on a CPU). Agreement is the share of id slots that are the same, over all clips and frames, also after two sequences
have parted. `providers` counts the nodes that ONNX Runtime ran on each device. The JSON file is written anew after
every part, so what was measured stays when a later part fails.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import Tensor

from autogaze import AutoGaze, Gaze
from autogaze.export import Engine
from autogaze.export.graph.forms import write_graph
from autogaze.export.onnx import ExportOptions
from autogaze.media.scenes import KINDS, render_scene
from autogaze.media.video import VideoError, read_video
from autogaze.model import AutoGazeConfig
from benchmarks.timing import machine, measure

FRAMES = 16


def clips(data: Path | None, count: int) -> Iterator[tuple[str, np.ndarray]]:
    """Clips of 16 frames (T, H, W, 3) uint8: the beginnings of videos under `data`, else rendered scenes."""
    if data is None:
        for seed in range(count):
            yield f"scene {seed}", render_scene(seed, FRAMES, kind=KINDS[seed % len(KINDS)])
        return
    found = 0
    for path in sorted(p for p in data.rglob("*") if p.suffix.lower() in (".mp4", ".webm", ".avi", ".mkv", ".mov")):
        try:
            frames = read_video(path, FRAMES).frames
        except VideoError as error:
            print(f"skipped: {error}", file=sys.stderr)
            continue
        if len(frames) == FRAMES:
            found += 1
            yield path.name, frames
        if found == count:
            return


def agreement(expected: Gaze, got: Gaze) -> tuple[int, int]:
    """Slots that are the same (id and choice), and slots in all."""
    width = max(expected.ids.shape[2], got.ids.shape[2])

    def padded(values: Tensor) -> Tensor:
        return torch.nn.functional.pad(values.cpu(), (0, width - values.shape[2]))

    a, b, ids_a, ids_b = padded(expected.chosen), padded(got.chosen), padded(expected.ids), padded(got.ids)
    slots = a | b
    return int((slots & (a == b) & (ids_a == ids_b)).sum()), int(slots.sum())


def parity(model: AutoGaze, engine: Engine, data: Path | None, count: int, batch: int) -> dict[str, object]:
    """Agreement over many clips, half of them with a requirement that frames meet."""
    equal = slots = seen = whole = 0
    pending: list[np.ndarray] = []

    def judge() -> None:
        nonlocal equal, slots, seen, whole
        video = torch.cat([model.preprocessor(torch.from_numpy(clip)) for clip in pending]).to(model.device)
        free = model.generate(video, engine.metadata.gazing_ratio)
        assert free.task_loss is not None
        requirement = torch.full((len(video),), float("-inf"))
        requirement[1::2] = free.task_loss[free.chosen].float().quantile(0.2).cpu()
        needed = requirement[:, None].expand(-1, FRAMES)
        expected = model.generate(video, engine.metadata.gazing_ratio, needed)
        got = engine.generate(video, engine.metadata.gazing_ratio, needed)
        for i in range(len(video)):
            same, total = agreement(expected[i : i + 1], got[i : i + 1])
            equal, slots, whole, seen = equal + same, slots + total, whole + (same == total), seen + 1
        pending.clear()

    for _, frames in clips(data, count):
        pending.append(frames)
        if len(pending) == batch:
            judge()
    if pending:
        judge()
    return {"clips": seen, "clips_equal": whole, "slots": slots, "agreement": equal / max(1, slots)}


def providers(path: Path, device: torch.device) -> dict[str, dict[str, int]]:
    """Nodes by execution provider and kind, from ONNX Runtime's own profile of one run."""
    options = ort.SessionOptions()
    options.enable_profiling, options.enable_mem_reuse = True, False
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        cuda = ["CUDAExecutionProvider"] if device.type == "cuda" else []
        session = ort.InferenceSession(str(path), options, providers=[*cuda, "CPUExecutionProvider"])
        kinds = {
            "tensor(float)": "float32",
            "tensor(float16)": "float16",
            "tensor(bool)": "bool",
            "tensor(int32)": "int32",
            "tensor(int64)": "int64",
        }
        session.run(
            None,
            {
                node.name: np.zeros([n if isinstance(n, int) else 1 for n in node.shape], kinds[node.type])
                for node in session.get_inputs()
            },
        )
        events = json.loads(Path(session.end_profiling()).read_text())
    found: dict[str, Counter[str]] = {}
    for event in events:
        facts = event.get("args", {})
        if facts.get("provider") and event["name"].endswith("_kernel_time"):
            found.setdefault(facts["provider"], Counter())[facts["op_name"]] += 1
    return {provider: dict(counts) for provider, counts in found.items()}


def times(model: AutoGaze, path: Path, device: torch.device, ratio: float, batches: list[int]) -> Iterator[dict]:
    """One frame of a stream, for every batch: ONNX Runtime with and without a CUDA graph, and PyTorch."""
    for batch in batches:
        frame = torch.randn(batch, 3, model.config.scales[-1], model.config.scales[-1], device=device)
        theirs = model.stream(ratio, batch=batch)
        own = frame.to(model.connector.pos_embed.dtype)
        row: dict = {"batch": batch, "pytorch": asdict(measure("pytorch", partial(theirs.step, own), device, 40, 20))}
        if device.type == "cpu" and find_spec("openvino"):
            engine = Engine.load(path, device, runtime="openvino")
            call = partial(engine.stream(ratio, batch=batch).step, frame)
            row["openvino"] = asdict(measure("openvino", call, device, 40, 20))
        for graph in [False, True] if device.type == "cuda" else [False]:
            stream = torch.cuda.Stream(device) if device.type == "cuda" else None
            engine = Engine.load(path, device, stream=stream, cuda_graph=graph)
            with engine.session.scope():
                name = "onnxruntime_cuda_graph" if graph else "onnxruntime"
                call = partial(engine.stream(ratio, batch=batch).step, frame)
                row[name] = asdict(measure(name, call, device, 40, 20))
        print({key: value["median_ms"] for key, value in row.items() if key != "batch"}, file=sys.stderr)
        yield row


def report(model: AutoGaze, ratio: float, precision: str, args: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Export one file and say everything about it, part by part."""
    device = torch.device(args.device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gaze.onnx"
        begun = time.perf_counter()
        options = ExportOptions(precision=precision, gazing_ratio=ratio, batch=(1, max([2, *args.batch])))
        graph = write_graph(model, options.metadata(model))
        onnx.save(graph, str(path))
        written = time.perf_counter()
        engine = Engine.load(path, device)
        opened = time.perf_counter()
        dtype = torch.float16 if precision == "fp16" and device.type == "cuda" else torch.float32
        own = AutoGaze(model.config).to(device, dtype).eval()
        own.load_state_dict(model.state_dict())
        file_ratio = engine.metadata.gazing_ratio
        yield {
            "precision": precision,
            "gazing_ratio": ratio,
            "budget": engine.metadata.budget,
            "nodes": len(graph.graph.node),
            "file_mib": path.stat().st_size / 2**20,
            "write_s": written - begun,
            "open_s": opened - written,
        }
        yield {"providers": providers(path, device)}
        yield {"parity_with_pytorch_fp32": parity(model, engine, args.data, args.clips, 8)}
        del engine
        if device.type == "cpu" and find_spec("openvino"):
            other = Engine.load(path, device, runtime="openvino")
            yield {"openvino_parity_with_pytorch_fp32": parity(model, other, args.data, args.clips, 8)}
            del other
        if args.clip_form:
            whole = ExportOptions(clip=True, precision=precision, gazing_ratio=ratio, batch=(1, 8))
            onnx.save(write_graph(model, whole.metadata(model)), str(path.with_name("clip.onnx")))
            clip_engine = Engine.load(path.with_name("clip.onnx"), device)
            yield {"clip_parity_with_pytorch_fp32": parity(model, clip_engine, args.data, args.clips, 8)}
            del clip_engine
        rows: list[dict] = []
        for row in times(own, path, device, file_ratio, args.batch):
            rows.append(row)
            yield {"frame": rows}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="what to export (default: random weights at base size, sharpened)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.1, 0.4, 0.75])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "fp16"], choices=["fp32", "fp16"])
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 8, 32], help="of times; none: parity alone")
    parser.add_argument("--data", type=Path, help="folder of videos for parity (default: rendered scenes)")
    parser.add_argument("--clips", type=int, default=200, help="clips for parity")
    parser.add_argument("--clip-form", action="store_true", help="parity of the clip form too (slow to open)")
    parser.add_argument("--quick", action="store_true", help="tiny model, one ratio, batch 1, 4 clips")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    if args.quick:
        args.ratios, args.batch, args.clips = [0.1], [1], min(args.clips, 4)
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32 on both sides
    model = AutoGaze.from_pretrained(args.checkpoint) if args.checkpoint else _sharp(args.quick)
    model = model.to(args.device).eval()
    files: list[dict[str, object]] = []
    result = {"machine": machine() | {"onnxruntime": ort.__version__}, "command": " ".join(sys.argv), "files": files}
    for precision in args.precisions:
        for ratio in args.ratios:
            files.append({})
            for part in report(model, ratio, precision, args):
                files[-1].update(part)
                if args.out:
                    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
                if "frame" not in part:
                    print(json.dumps(part), file=sys.stderr, flush=True)
    print(json.dumps(result, indent=1))
    return 0


def _sharp(tiny: bool) -> AutoGaze:
    """Random weights whose best id wins clearly, as a trained model's does."""
    torch.manual_seed(0)
    model = AutoGaze(AutoGazeConfig.tiny() if tiny else AutoGazeConfig.base())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name and "bias" not in name:
                parameter *= 3.0
    return model


if __name__ == "__main__":
    sys.exit(main())
