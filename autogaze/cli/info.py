"""`autogaze info X`: what a checkpoint, an ONNX file or an engine is; `autogaze info --vit NAME`: will gazing pay?"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from autogaze import checkpoint
from autogaze.decoding.backends import chosen_backend
from autogaze.export.engine_file import ENGINE_SUFFIXES, read_engine
from autogaze.extras import explain
from autogaze.model import AutoGaze
from autogaze.report import break_even


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", nargs="?", help="checkpoint (shipped name, folder, run, hub id), .onnx file or TensorRT engine"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    break_even.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    if args.vit is not None:
        return break_even.run(args)
    if args.what is None:
        raise ValueError("say what to describe: a checkpoint, an .onnx file, an engine, or --vit NAME")
    facts = describe(args.what)
    if args.json:
        print(json.dumps(facts))
    else:
        width = max(map(len, facts))
        for name, value in facts.items():
            print(f"{name.replace('_', ' '):{width}}  {value}")
    return 0


def describe(what: str) -> dict[str, Any]:
    """Facts about a file or folder.

    Raises:
        FileNotFoundError: if there is no such thing.
        ValueError: if it is of no known kind, or damaged.
        ImportError: if reading it needs an extra that is not installed.
    """
    path = Path(what)
    if path.suffix == ".onnx":
        return {"kind": "ONNX", "file": what, **_onnx(path)}
    if path.suffix in ENGINE_SUFFIXES:
        return {"kind": "TensorRT engine", "file": what, **_engine(path)}
    if path.is_file():
        raise ValueError(
            f"{what} is a file of no known kind: expected a checkpoint folder, .onnx or {', '.join(ENGINE_SUFFIXES)}"
        )
    return {"kind": "checkpoint", "folder": str(checkpoint.find(what)), **_checkpoint(what)}


def _checkpoint(what: str) -> dict[str, Any]:
    model = AutoGaze.from_pretrained(what, "cpu")
    config = asdict(model.config)
    rope = config.pop("rope")
    way, reason = chosen_backend(model)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "patches_per_frame": model.grid.patches_per_frame,
        **config,
        "rope_theta": rope["theta"],
        "preprocessing": asdict(model.preprocessor),
        "decoding_on_cpu": f"{way} ({reason})",
    }


def _onnx(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no such ONNX file: {path}")
    try:
        import onnx
    except ImportError as error:
        raise explain(error, "reading ONNX files") from error
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        raise ValueError(f"{path} is not an ONNX file: {error}") from error
    graph = model.graph
    return {
        "opset": max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0),
        "nodes": len(graph.node),
        "bytes": path.stat().st_size,
        "inputs": {value.name: _shape(value) for value in graph.input},
        "outputs": {value.name: _shape(value) for value in graph.output},
        **{f"metadata_{entry.key}": entry.value for entry in model.metadata_props},
    }


def _shape(value: Any) -> list[int | str]:
    return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]


def _engine(path: Path) -> dict[str, Any]:
    """What an engine file says about itself; needs no GPU and no TensorRT."""
    file = read_engine(path)
    facts = file.facts
    return {
        "bytes": path.stat().st_size,
        "plan_bytes": len(file.plan),
        "runtime": f"{facts.runtime} {facts.version}",
        "hardware": facts.hardware,
        "version_compatible": facts.version_compatible,
        "inputs": {spec.name: ["batch", *spec.shape] for spec in facts.inputs},
        "outputs": {spec.name: ["batch", *spec.shape] for spec in facts.outputs},
        **{f"metadata_{key}": value for key, value in file.metadata.to_properties().items()},
    }
