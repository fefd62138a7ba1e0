"""The kinds of exported files and what runs them: one entry each in `TARGETS`, and a module beside this one.

Where several have a suffix, the first one opens such a file unless another is named (`Engine.load(runtime=...)`).
The command line, `Engine.load` and `autogaze info` follow from the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch

from autogaze.export.describe import describe_engine, describe_onnx
from autogaze.export.engine_file import ENGINE_SUFFIXES
from autogaze.export.metadata import FormatError, Metadata

if TYPE_CHECKING:
    from autogaze.export.onnx import ExportOptions
    from autogaze.export.runner import Session
    from autogaze.export.tensorrt import BuildOptions
    from autogaze.model import AutoGaze

Progress = Callable[[str], None]
Runtime = Literal["onnxruntime", "openvino", "tensorrt"]


class Report(Protocol):
    """Report on a written file, and on its check; a frozen dataclass."""

    @property
    def path(self) -> str: ...

    @property
    def metadata(self) -> Metadata: ...

    def words(self) -> str:
        """One line for people."""
        ...


@dataclass(frozen=True)
class RunOptions:
    """Options of running a file; see `Engine.load`. What a runtime does not have it refuses by name."""

    device: torch.device | None = None
    stream: Any = None
    cuda_graph: bool = False
    threads: int | None = None


@dataclass(frozen=True)
class Target:
    """One kind of file with one runtime."""

    name: Runtime
    kind: str  # of the file, for people
    suffixes: tuple[str, ...]
    session: str  # "module:class" that runs it, from (Path, RunOptions); imported when asked, since it needs a package
    describe: Callable[[Path], dict[str, Any]]  # facts for `autogaze info`
    option: str | None = None  # of `autogaze export`, without the dashes; None: it runs what another one writes
    help: str = ""
    writer: str | None = None  # "module:function" (AutoGaze, Path, ExportOptions, BuildOptions, Progress) -> Report

    def open(self, path: Path, options: RunOptions) -> Session:
        """Open a file. Raises: ImportError, if the runtime is not installed."""
        make: Callable[[Path, RunOptions], Session] = resolve_name(self.session)
        return make(path, options)

    def write(
        self, model: AutoGaze, path: Path, options: ExportOptions, build: BuildOptions, progress: Progress
    ) -> Report:
        """Write a file, checked."""
        if self.writer is None:
            raise ValueError(f"{self.name} runs files that others write")
        make: Callable[[AutoGaze, Path, ExportOptions, BuildOptions, Progress], Report] = resolve_name(self.writer)
        return make(model, path, options, build, progress)


def target_of(path: Path, runtime: Runtime | None = None) -> Target:
    """The entry for a file.

    Raises:
        ValueError: if there is no such runtime, or it does not run such files.
        FormatError: if no runtime runs such files.
    """
    fitting = [target for target in TARGETS if path.suffix in target.suffixes]
    if runtime is not None and runtime not in {target.name for target in fitting}:
        names = ", ".join(target.name for target in fitting or TARGETS)
        raise ValueError(f"{path}: runtime must be one of {names} for such a file, got {runtime!r}")
    if not fitting:
        suffixes = ", ".join(sorted({suffix for target in TARGETS for suffix in target.suffixes}))
        raise FormatError(f"{path}: expected a file in {suffixes}; AutoGaze.from_pretrained loads checkpoints")
    return next(target for target in fitting if runtime in (None, target.name))


TARGETS = [
    Target(
        "onnxruntime", "ONNX", (".onnx",), "autogaze.export.sessions.ort:OrtSession", describe_onnx,
        "onnx", "write an ONNX file", "autogaze.export.onnx:write_onnx",
    ),
    Target("openvino", "ONNX", (".onnx",), "autogaze.export.sessions.openvino:OpenVinoSession", describe_onnx),
    Target(
        "tensorrt", "TensorRT engine", ENGINE_SUFFIXES, "autogaze.export.sessions.trt:TrtSession", describe_engine,
        "trt", "build a TensorRT engine", "autogaze.export.tensorrt:export_tensorrt",
    ),
]  # fmt: skip
