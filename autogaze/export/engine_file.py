"""An `.engine` file: a TensorRT plan, followed by what it says about itself and a footer that shows it is whole.

    plan | "key=value" lines, UTF-8 | plan bytes, text bytes: 2 x u64 | CRC-32 of plan and text: u32 | b"AUTOGAZE"

All numbers are little-endian. TensorRT itself stores no metadata, and the footer stands at the end so that a file cut
short is recognised before TensorRT sees it.
"""

from __future__ import annotations

import importlib
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from autogaze.export.metadata import FormatError, Metadata
from autogaze.export.tensors import TensorSpec
from autogaze.extras import install
from autogaze.files import atomic_path

MAGIC = b"AUTOGAZE"
FOOTER = struct.Struct("<QQI8s")
ENGINE = "engine."
TYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool, torch.uint8)
}
ENGINE_SUFFIXES = (".engine", ".plan", ".trt")
# modules that run engines, and what to install for each; no other name from a file is ever imported
RUNTIMES = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx-cu13"}
INSTALL = f"TensorRT is not installed: for data-centre GPUs pip install tensorrt, for RTX GPUs {install('trt')}"


@dataclass(frozen=True)
class EngineFacts:
    """Versions that a plan was built with, and the hardware that it was built for."""

    runtime: str  # "tensorrt" or "tensorrt_rtx"
    version: str  # of it
    hardware: str  # GPUs it runs on, such as "sm_90", "ampere+" or "rtx"
    version_compatible: bool  # whether later versions of the runtime run it too
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, eq=False)
class EngineFile:
    """An `.engine` file in memory."""

    plan: bytes
    metadata: Metadata
    facts: EngineFacts


def write_engine(path: Path, plan: bytes, metadata: Metadata, facts: EngineFacts) -> None:
    """Write an engine file whole or not at all."""
    properties = metadata.to_properties() | {
        ENGINE + "runtime": facts.runtime,
        ENGINE + "version": facts.version,
        ENGINE + "hardware": facts.hardware,
        ENGINE + "version_compatible": str(int(facts.version_compatible)),
        ENGINE + "inputs": _write_specs(facts.inputs),
        ENGINE + "outputs": _write_specs(facts.outputs),
    }
    text = "".join(f"{key}={value}\n" for key, value in properties.items()).encode()
    with atomic_path(path) as temporary:
        footer = FOOTER.pack(len(plan), len(text), zlib.crc32(text, zlib.crc32(plan)), MAGIC)
        temporary.write_bytes(plan + text + footer)


def read_engine(path: Path) -> EngineFile:
    """Read an engine file.

    Raises:
        FileNotFoundError: if there is no such file.
        FormatError: if it is cut short, damaged, not ours or of a newer format.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such engine: {path}")
    data = path.read_bytes()
    if len(data) < FOOTER.size or data[-len(MAGIC) :] != MAGIC:
        raise FormatError(f"{path}: cut short, or not an engine that `autogaze export --trt` wrote")
    plan_size, text_size, checksum, _ = FOOTER.unpack(data[-FOOTER.size :])
    if plan_size + text_size + FOOTER.size != len(data) or zlib.crc32(data[: -FOOTER.size]) != checksum:
        raise FormatError(f"{path}: damaged, its parts do not add up; export it again")
    try:
        properties = read_properties(data[plan_size : plan_size + text_size].decode())
        metadata = Metadata.from_properties(properties, str(path))
        return EngineFile(data[:plan_size], metadata, _read_facts(properties))
    except FormatError:
        raise
    except (ValueError, LookupError) as error:
        raise FormatError(f"{path}: damaged list of facts ({error}); export it again") from error


def read_properties(text: str) -> dict[str, str]:
    """Keys and values of "key=value" lines."""
    return dict(line.split("=", 1) for line in text.splitlines())


def torch_type(trt: Any, dtype: Any) -> torch.dtype:
    """torch's name of a TensorRT element type."""
    kind = trt.DataType
    return {
        kind.FLOAT: torch.float32,
        kind.HALF: torch.float16,
        kind.BF16: torch.bfloat16,
        kind.INT64: torch.int64,
        kind.INT32: torch.int32,
        kind.BOOL: torch.bool,
        kind.UINT8: torch.uint8,
    }[dtype]


def _read_facts(properties: dict[str, str]) -> EngineFacts:
    value = {key.removeprefix(ENGINE): value for key, value in properties.items() if key.startswith(ENGINE)}
    if value["runtime"] not in RUNTIMES:
        raise ValueError(f"runtime must be {' or '.join(RUNTIMES)}, got {value['runtime']!r}")
    return EngineFacts(
        value["runtime"],
        value["version"],
        value["hardware"],
        value["version_compatible"] == "1",
        _read_specs(value["inputs"]),
        _read_specs(value["outputs"]),
    )


def _write_specs(specs: tuple[TensorSpec, ...]) -> str:
    """ "frame:float32:3x224x224;budget:int32:" - without the batch."""
    return ";".join(f"{s.name}:{str(s.dtype).removeprefix('torch.')}:{'x'.join(map(str, s.shape))}" for s in specs)


def _read_specs(text: str) -> tuple[TensorSpec, ...]:
    specs = (part.split(":") for part in text.split(";"))
    return tuple(
        TensorSpec(name, TYPES[dtype], tuple(int(n) for n in shape.split("x") if n)) for name, dtype, shape in specs
    )


def find_tensorrt() -> Any:
    """The TensorRT module that is installed.

    Raises:
        ImportError: naming what to install.
    """
    for name in RUNTIMES:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not error.name.startswith("tensorrt"):
                raise
    raise ImportError(INSTALL)
