"""Facts about exported files, for `autogaze info`; needs neither a GPU nor a runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autogaze.export.engine_file import read_engine
from autogaze.extras import explain


def describe_onnx(path: Path) -> dict[str, Any]:
    """Facts about an ONNX file."""
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


def describe_engine(path: Path) -> dict[str, Any]:
    """Facts about an engine file; needs no GPU and no TensorRT."""
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
