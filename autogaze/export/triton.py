"""Writes a Triton Inference Server model repository around an exported file.

A frame file becomes a stateful model: sequence batching keeps each stream's requests on one slot, and Triton carries
the memory from call to call as implicit state, so a client sends a frame and gets a gaze. A clip file becomes an
ordinary model. See `docs/formats.md` and `autogaze.export.triton_client`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from autogaze.export.engine_file import ENGINE_SUFFIXES, find_tensorrt, read_engine
from autogaze.export.metadata import FORMAT, FormatError, Metadata
from autogaze.export.runner import Engine
from autogaze.export.tensors import CALL, GAZE, TensorSpec, state_of

if TYPE_CHECKING:
    from autogaze.export.onnx import ExportOptions

NAME = "autogaze"
IDLE_MICROSECONDS = 60_000_000  # a stream that sends nothing for a minute is forgotten
_TYPES = {
    torch.float32: "TYPE_FP32",
    torch.float16: "TYPE_FP16",
    torch.bfloat16: "TYPE_BF16",
    torch.int64: "TYPE_INT64",
    torch.int32: "TYPE_INT32",
    torch.bool: "TYPE_BOOL",
    torch.uint8: "TYPE_UINT8",
}


def write_repository(path: Path, folder: Path, name: str = NAME) -> Path:
    """Write `folder/name` with `config.pbtxt` and version 1 of the model.

    Args:
        path: an exported file, .onnx or .engine.
        folder: the repository; other models in it stay.

    Returns:
        The model's folder.

    Raises:
        ValueError: if Triton could not load it, saying why.
    """
    if path.suffix in ENGINE_SUFFIXES:
        check_runtime(read_engine(path).facts.runtime)
    metadata, inputs, outputs = _describe(path)
    if metadata.format < FORMAT:
        raise FormatError(f"{path}: of format {metadata.format}; export it again to serve it")
    check_served(metadata.batch, metadata.precision, path.suffix in ENGINE_SUFFIXES)
    target = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=folder))
    try:
        (fresh / "1").mkdir()
        engine = path.suffix in ENGINE_SUFFIXES
        if engine:  # Triton wants the bare plan
            (fresh / "1" / "model.plan").write_bytes(read_engine(path).plan)
        else:
            shutil.copyfile(path, fresh / "1" / "model.onnx")
        (fresh / "config.pbtxt").write_text(config(metadata, inputs, outputs, engine, name), encoding="utf-8")
        fresh.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        os.replace(fresh, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return target


def check_servable(options: ExportOptions, path: Path) -> None:
    """Refuse what Triton could not load, before it is exported.

    Args:
        path: where the exported file will be.

    Raises:
        ValueError: saying why, and what to ask for instead.
        ImportError: if an engine is asked for and no TensorRT is installed.
    """
    engine = path.suffix in ENGINE_SUFFIXES
    if engine:
        check_runtime(find_tensorrt().__name__)
    check_served(options.batch, options.precision, engine)


def check_served(batch: tuple[int, int], precision: str, engine: bool) -> None:
    """Refuse a batch or precision that Triton does not serve."""
    low, high = batch
    if low > 1 or low == high:
        raise ValueError(
            f"Triton puts 1 to M requests in a batch, and refuses a file of a fixed batch: export with --batch 1:M, "
            f"M above 1, got {low}:{high}"
        )
    if precision == "bf16" and not engine:
        raise ValueError(
            "ONNX Runtime has no bfloat16 memory in Triton: serve --precision fp32 or fp16, or an engine (--trt)"
        )


def check_runtime(runtime: str) -> None:
    """Refuse an engine of a runtime that Triton does not have."""
    if runtime != "tensorrt":
        raise ValueError(
            f"Triton runs engines of the tensorrt package, not of {runtime}: install tensorrt, or serve an ONNX file"
        )


def config(
    metadata: Metadata, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], engine: bool, name: str = NAME
) -> str:
    """The text of `config.pbtxt`."""
    lines = [
        f'name: "{name}"',
        'platform: "tensorrt_plan"' if engine else 'platform: "onnxruntime_onnx"',
        f"max_batch_size: {metadata.batch[1]}",
    ]
    lines += [_tensor("input", spec) for spec in inputs if spec.name in CALL]
    lines += [_tensor("output", spec) for spec in outputs if spec.name in GAZE]
    lines.append("instance_group [ { count: 1 kind: KIND_AUTO } ]")
    if metadata.kind == "frame":
        lines.append(_sequence_batching(metadata, state_of(inputs)))
    else:
        lines.append("dynamic_batching { }")
    lines += [
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
        for key, value in metadata.to_properties().items()
    ]
    return "\n".join(lines) + "\n"


def _sequence_batching(metadata: Metadata, state: tuple[TensorSpec, ...]) -> str:
    parts = [
        "sequence_batching {",
        f"  max_sequence_idle_microseconds: {IDLE_MICROSECONDS}",
        f"  oldest {{ max_candidate_sequences: {max(64, 4 * metadata.batch[1])} }}",
    ]
    for spec in state:
        kind, shape = _TYPES[spec.dtype], ", ".join(map(str, spec.shape))
        parts += [
            "  state {",
            f'    input_name: "{spec.name}"',
            f'    output_name: "next_{spec.name}"',
            f"    data_type: {kind}",
            f"    dims: [ {shape} ]",
            f'    initial_state {{ name: "empty_{spec.name}" data_type: {kind} dims: [ {shape} ] zero_data: true }}',
            "  }",
        ]
    return "\n".join([*parts, "}"])


def _tensor(kind: str, spec: TensorSpec) -> str:
    """One input or output. Triton has no tensor without dimensions beside the batch: those get one of size 1."""
    dims = ", ".join(map(str, spec.shape or (1,)))
    reshape = "" if spec.shape else " reshape { shape: [ ] }"
    return f'{kind} {{ name: "{spec.name}" data_type: {_TYPES[spec.dtype]} dims: [ {dims} ]{reshape} }}'


def _describe(path: Path) -> tuple[Metadata, tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    if path.suffix in ENGINE_SUFFIXES:
        file = read_engine(path)
        return file.metadata, file.facts.inputs, file.facts.outputs
    session = Engine.load(path, "cpu").session
    return session.metadata, session.inputs, session.outputs
