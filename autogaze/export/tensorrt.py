"""Builds TensorRT engines: from the same checked graph as the ONNX file, strongly typed, with one optimisation profile.

Uses the `tensorrt` package (data-centre GPUs; needs the GPU that it builds for) where it is installed, else
`tensorrt_rtx` (RTX GPUs; builds without one).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from autogaze.export.engine_file import (
    ENGINE_SUFFIXES,
    EngineFacts,
    find_tensorrt,
    read_engine,
    torch_type,
    write_engine,
)
from autogaze.export.graph.forms import input_specs, output_specs
from autogaze.export.metadata import Metadata
from autogaze.export.onnx import ExportOptions, check_file, check_target, checked_graph
from autogaze.export.parity import Parity, ParityError, share_words
from autogaze.export.tensors import TensorSpec
from autogaze.files import atomic_path
from autogaze.model import AutoGaze

Hardware = Literal["this", "same-capability", "ampere+"]
HARDWARE: dict[Hardware, str] = {"this": "NONE", "same-capability": "SAME_COMPUTE_CAPABILITY", "ampere+": "AMPERE_PLUS"}
# a layer that runs elsewhere or slower than it should is told of at any severity
TELLING = ("fallback", "fall back", "unsupported", "not supported")


class BuildError(RuntimeError):
    """TensorRT refused the graph; the message carries its own words."""


@dataclass(frozen=True)
class BuildOptions:
    """Options of a build, besides those of an export."""

    workspace_mib: int | None = None  # scratch memory that a kernel may use; None: all there is
    timing_cache: Path | None = None  # read if it exists, written after the build
    version_compatible: bool = False  # later versions of the runtime can run the engine
    hardware: Hardware = "this"  # GPUs to run on
    tuned_batch: int | None = None  # kernels are chosen for this batch size; None: the largest

    def __post_init__(self) -> None:
        if self.hardware not in HARDWARE:
            raise ValueError(f"hardware must be one of {', '.join(HARDWARE)}, got {self.hardware!r}")
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise ValueError(f"workspace must be positive MiB, got {self.workspace_mib}")
        if self.tuned_batch is not None and self.tuned_batch < 1:
            raise ValueError(f"the tuned batch must be at least 1, got {self.tuned_batch}")


@dataclass(frozen=True)
class EngineReport:
    """Report on a built engine, and on its check."""

    path: str
    runtime: str
    version: str
    layers: int
    bytes: int
    metadata: Metadata
    graph_parity: dict[int, Parity]  # of the graph in ONNX Runtime, by batch size
    engine_parity: dict[int, Parity] | None  # of the engine itself; None where there is no GPU to run it
    log: tuple[str, ...]  # the build's warnings, errors, and whatever it says of fallbacks and support

    def words(self) -> str:
        """One line for people."""
        size = f"{self.bytes / 2**20:.1f} MiB"
        line = f"{self.path}: {self.metadata.words()}, {self.runtime} {self.version}, {size}"
        if self.engine_parity is None:
            return f"{line}; its graph {share_words(self.graph_parity)}; there is no GPU here to run the engine itself"
        return f"{line}; {share_words(self.engine_parity)}"


def export_tensorrt(
    model: AutoGaze,
    path: str | Path,
    options: ExportOptions | None = None,
    build: BuildOptions | None = None,
    progress: Callable[[str], None] | None = None,
) -> EngineReport:
    """Build an engine; the file appears only once it has passed its checks.

    The graph is checked against PyTorch in ONNX Runtime first; the engine itself too where there is a GPU.

    Args:
        model: not changed.
        path: ends in `.engine`, `.plan` or `.trt`.
        progress: is told the name of each phase of the build.

    Raises:
        ImportError: if no TensorRT is installed, naming what to install.
        BuildError: if TensorRT refuses the graph.
        ParityError: if the file does not choose what PyTorch chooses.
    """
    options, build, trt = options or ExportOptions(), build or BuildOptions(), find_tensorrt()
    path, builder = check_target(path, ENGINE_SUFFIXES), EngineBuilder(trt, build, progress)
    if build.tuned_batch is not None and not options.batch[0] <= build.tuned_batch <= options.batch[1]:
        raise ValueError(f"the tuned batch must be one of the file's, {options.batch[0]} to {options.batch[1]}")
    graph, metadata, graph_parity = checked_graph(model, options)
    plan, layers = builder.build(graph.SerializeToString(), metadata)
    facts = EngineFacts(
        trt.__name__, trt.__version__, builder.hardware(), build.version_compatible, *builder.specs(model, metadata)
    )
    with atomic_path(path) as temporary:
        write_engine(temporary, plan, metadata, facts)
        back = read_engine(temporary)
        if back.facts != facts or back.metadata != metadata:
            raise ParityError(f"{path}: what the engine file says about itself does not read back")
        parity = check_file(temporary, model, metadata, "cuda") if torch.cuda.is_available() else None
    return EngineReport(
        str(path), trt.__name__, trt.__version__, layers, len(plan), metadata, graph_parity, parity, tuple(builder.log)
    )


class EngineBuilder:
    """One build with one TensorRT package."""

    def __init__(self, trt: Any, options: BuildOptions, progress: Callable[[str], None] | None = None) -> None:
        self.trt, self.options, self.progress = trt, options, progress
        self.is_rtx = trt.__name__ == "tensorrt_rtx"
        if self.is_rtx and (options.hardware != "this" or options.version_compatible or options.timing_cache):
            raise ValueError(
                "tensorrt_rtx engines run on every RTX GPU from Ampere on, with the version that built them, and "
                "kernels are chosen there: hardware, version compatibility and timing cache are options of the "
                "tensorrt package"
            )
        if not self.is_rtx and not torch.cuda.is_available():
            raise ValueError("the tensorrt package builds on the GPU that it builds for, and there is none here")
        self.log: list[str] = []
        self.logger = _logger(trt, self.log)
        self._network: Any = None

    def build(self, graph: bytes, metadata: Metadata) -> tuple[bytes, int]:
        """The plan of a serialised ONNX graph, and how many layers its network has."""
        builder = self.trt.Builder(self.logger)
        network = self._network = builder.create_network(_strongly_typed(self.trt))
        parser = self.trt.OnnxParser(network, self.logger)
        if not parser.parse(graph):
            errors = "; ".join(str(parser.get_error(i).desc()) for i in range(parser.num_errors))
            raise BuildError(f"{self.trt.__name__} {self.trt.__version__} cannot read the graph: {errors}")
        config = self._config(builder, network, metadata)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise BuildError(f"{self.trt.__name__} {self.trt.__version__} built nothing: {'; '.join(self.log[-3:])}")
        if self.options.timing_cache is not None:
            self._keep_timings(config, self.options.timing_cache)
        return bytes(plan), network.num_layers

    def specs(self, model: AutoGaze, metadata: Metadata) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Inputs and outputs as the network has them.

        Raises:
            BuildError: if they are not the promised ones.
        """
        network, trt = self._network, self.trt
        found = []
        for count, get, promised in (
            (network.num_inputs, network.get_input, input_specs(model, metadata)),
            (network.num_outputs, network.get_output, output_specs(model, metadata)),
        ):
            tensors = [get(i) for i in range(count)]
            specs = tuple(TensorSpec(t.name, torch_type(trt, t.dtype), tuple(t.shape)[1:]) for t in tensors)
            if specs != promised:
                raise BuildError(f"the engine has {specs}, promised were {promised}")
            found.append(specs)
        return found[0], found[1]

    def hardware(self) -> str:
        """The GPUs that the engine runs on."""
        if self.is_rtx:
            return "rtx"
        if self.options.hardware != "this":
            return self.options.hardware
        return "sm_{}{}".format(*torch.cuda.get_device_capability())

    def _config(self, builder: Any, network: Any, metadata: Metadata) -> Any:
        trt, options, config = self.trt, self.options, builder.create_builder_config()
        config.clear_flag(trt.BuilderFlag.TF32)  # fp32 means float32: ids equal PyTorch's
        if options.workspace_mib is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if options.hardware != "this":
            level = getattr(trt.HardwareCompatibilityLevel, HARDWARE[options.hardware], None)
            if level is None:  # "same-capability" came with TensorRT 10.9
                raise ValueError(f"hardware {options.hardware} needs a later TensorRT than {trt.__version__}")
            config.hardware_compatibility_level = level
        if options.timing_cache is not None:
            self._use_timings(config, options.timing_cache)
        if self.progress is not None:
            config.progress_monitor = _monitor(trt, self.progress)
        low, high = metadata.batch
        if low != high:
            profile = builder.create_optimization_profile()
            for i in range(network.num_inputs):
                tensor = network.get_input(i)
                shape = tuple(tensor.shape)[1:]
                tuned = options.tuned_batch or high
                profile.set_shape(tensor.name, (low, *shape), (tuned, *shape), (high, *shape))
            config.add_optimization_profile(profile)
        return config

    def _use_timings(self, config: Any, path: Path) -> None:
        """Begin with the timings of an earlier build; those of another GPU or version are left out, and said so."""
        old = path.read_bytes() if path.is_file() else b""
        cache = config.create_timing_cache(old)
        if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
            self.log.append(f"{path}: timings of another GPU or TensorRT, or damaged; measured anew")
            cache = config.create_timing_cache(b"")
            if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
                raise BuildError(f"{self.trt.__name__} {self.trt.__version__} made no timing cache")

    def _keep_timings(self, config: Any, path: Path) -> None:
        cache = config.get_timing_cache()
        timings = None if cache is None else cache.serialize()
        if timings is None:
            self.log.append(f"{path}: TensorRT gave no timings to keep")
            return
        with atomic_path(path) as temporary:
            temporary.write_bytes(bytes(timings))


def _strongly_typed(trt: Any) -> int:
    """The flag; TensorRT 11 builds nothing else, and may drop it."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _logger(trt: Any, log: list[str]) -> Any:
    class Collect(trt.ILogger):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.WARNING or any(word in message.lower() for word in TELLING):
                log.append(message)

    return Collect()


def _monitor(trt: Any, progress: Callable[[str], None]) -> Any:
    class Tell(trt.IProgressMonitor):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase: str, parent: str, steps: int) -> None:
            if not parent:
                progress(phase)

        def step_complete(self, phase: str, step: int) -> bool:
            return True

        def phase_finish(self, phase: str) -> None:
            pass

    return Tell()
