"""Writes `.onnx` files that were checked: by onnx.checker, by shape inference, and by running them against PyTorch."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from autogaze.extras import explain

try:
    import onnx
except ImportError as error:
    raise explain(error, "exporting") from error

from autogaze.core.grid import PatchGrid
from autogaze.export.graph.forms import PRECISIONS, Precision, output_specs, write_graph
from autogaze.export.graph.nodes import ELEMENT_TYPES
from autogaze.export.metadata import Metadata, describe
from autogaze.export.parity import Parity, ParityError, compare, scenes, share_words
from autogaze.export.runner import Engine
from autogaze.files import atomic_path
from autogaze.model import AutoGaze

FORBIDDEN = {"Loop", "If", "Scan", "NonZero"}  # data-dependent: no CUDA graph, and trouble in TensorRT
CHECKED_FRAMES = 3


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export: everything that is fixed in the file."""

    clip: bool = False  # whole clips instead of one frame a call
    precision: Precision = "fp32"  # of weights and memory
    gazing_ratio: float | None = None  # largest share of a frame's patches; None: the checkpoint's
    scales: tuple[int, ...] | None = None  # pixels: only ids of these are chosen; None: of all
    batch: tuple[int, int] = (1, 16)  # smallest and largest
    frames: int | None = None  # frames a clip; None: as many as the model remembers
    input_size: tuple[int, int] | None = None  # (height, width) of uint8 frames, preprocessed inside; None: float

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if not 1 <= self.batch[0] <= self.batch[1]:
            raise ValueError(f"batch must be N or N:M with 1 <= N <= M, got {self.batch[0]}:{self.batch[1]}")
        if self.input_size is not None and min(self.input_size) < 1:
            raise ValueError(f"input size must be positive pixels, got {self.input_size}")
        if self.frames is not None and not self.clip:
            raise ValueError("frames is a clip's length; a frame file takes clips of any length")

    def metadata(self, model: AutoGaze) -> Metadata:
        """Metadata of the file to be written."""
        config, side = model.config, model.config.scales[-1]
        ratio = config.gazing_ratio if self.gazing_ratio is None else self.gazing_ratio
        frames = config.max_num_frames if self.frames is None else self.frames
        if not 1 <= frames <= config.max_num_frames:
            raise ValueError(
                f"a clip has 1 to {config.max_num_frames} frames, which is what the model remembers, got {frames}"
            )
        allowed = allowed_scales(model.grid, self.scales)
        choice = sum(n for n, s in zip(model.grid.patches_per_scale, model.grid.scales, strict=True) if s in allowed)
        return describe(
            config,
            model.preprocessor,
            kind="clip" if self.clip else "frame",
            precision=self.precision,
            budget=min(model.grid.budget(ratio), choice),
            frames=frames,
            gazing_ratio=ratio,
            allowed_scales=allowed,
            batch=self.batch,
            pixels="float32" if self.input_size is None else "uint8",
            input_size=self.input_size or (side, side),
        )


@dataclass(frozen=True)
class OnnxReport:
    """Report on a written file, and on its check."""

    path: str
    nodes: int
    opset: int
    metadata: Metadata
    parity: dict[int, Parity]  # batch size -> comparison with PyTorch

    def words(self) -> str:
        """One line for people."""
        checked = share_words(self.parity)
        return f"{self.path}: {self.metadata.words()}, {self.nodes} nodes, opset {self.opset}; {checked}"


def export_onnx(model: AutoGaze, path: str | Path, options: ExportOptions | None = None) -> OnnxReport:
    """Write a model as ONNX; the file appears only once it has passed its checks.

    Args:
        model: not changed; checked against in float32 on the CPU.
        path: ends in `.onnx`.

    Raises:
        ValueError: on options that do not fit the model, or another suffix.
        OSError: if the file cannot be written there; found out before any work.
        ParityError: if the file does not choose what PyTorch chooses.
    """
    path = check_target(path, (".onnx",))
    graph, metadata, parity = checked_graph(model, options or ExportOptions())
    with atomic_path(path) as temporary:
        onnx.save(graph, str(temporary))
    return OnnxReport(str(path), len(graph.graph.node), graph.opset_import[0].version, metadata, parity)


def write_onnx(model: AutoGaze, path: Path, options: ExportOptions, *_: object) -> OnnxReport:
    """`export_onnx` as the table of targets calls it: a file of ONNX needs no build."""
    return export_onnx(model, path, options)


def allowed_scales(grid: PatchGrid, scales: tuple[int, ...] | None) -> tuple[int, ...]:
    """The scales whose ids a file may choose, ascending.

    Raises:
        ValueError: if one is not of the grid, or none is given.
    """
    asked = set(grid.scales if scales is None else scales)
    if not asked or not asked <= set(grid.scales):
        raise ValueError(f"scales must be some of the model's {grid.scales} (pixels), got {scales}")
    return tuple(scale for scale in grid.scales if scale in asked)


def check_target(path: str | Path, suffixes: tuple[str, ...]) -> Path:
    """A path that can be written, asked before minutes of work; missing folders are made.

    Raises:
        ValueError: on another suffix.
        OSError: naming the path that was asked for.
    """
    path = Path(path)
    if path.suffix not in suffixes:
        raise ValueError(f"expected a file that ends in {' or '.join(suffixes)}, got {path}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        why = f"{path.parent} is not a folder" if isinstance(error, FileExistsError) else error.strerror
        raise OSError(f"cannot write {path}: {why}") from error
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder")
    return path


def checked_graph(model: AutoGaze, options: ExportOptions) -> tuple[onnx.ModelProto, Metadata, dict[int, Parity]]:
    """A model's graph, run in ONNX Runtime on the CPU against PyTorch.

    ONNX Runtime has no bfloat16 on a CPU: there the graph's float32 twin is run.

    Raises:
        ParityError: if it does not choose what PyTorch chooses.
    """
    metadata = options.metadata(model)
    graph = write_graph(model, metadata)
    check_graph(graph, model, metadata)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        onnx.save(float32_twin(graph) if metadata.precision == "bf16" else graph, str(path))
        return graph, metadata, check_file(path, model, metadata)


def float32_twin(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The same nodes and the same rounded weights with float32 wherever the graph has bfloat16."""
    twin = onnx.ModelProto()
    twin.CopyFrom(graph)
    for tensor in twin.graph.initializer:
        if tensor.data_type == onnx.TensorProto.BFLOAT16:
            bits = np.frombuffer(tensor.raw_data, np.uint16).astype(np.uint32) << 16
            tensor.data_type, tensor.raw_data = onnx.TensorProto.FLOAT, bits.tobytes()
    for node in twin.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == onnx.TensorProto.BFLOAT16:
                attribute.i = onnx.TensorProto.FLOAT
    for value in (*twin.graph.input, *twin.graph.output):
        if value.type.tensor_type.elem_type == onnx.TensorProto.BFLOAT16:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return twin


def check_graph(graph: onnx.ModelProto, model: AutoGaze, metadata: Metadata) -> None:
    """onnx.checker, shape inference, no control flow, and outputs of the promised shapes."""
    onnx.checker.check_model(graph, full_check=True)
    forbidden = FORBIDDEN & {node.op_type for node in graph.graph.node}
    if forbidden:
        raise ParityError(f"the graph holds data-dependent nodes: {', '.join(sorted(forbidden))}")
    bare = onnx.ModelProto()
    bare.CopyFrom(graph)
    for output in bare.graph.output:
        output.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(bare, check_type=True, strict_mode=True, data_prop=True)
    for output, spec in zip(inferred.graph.output, output_specs(model, metadata), strict=True):
        tensor = output.type.tensor_type
        shape = tuple(axis.dim_value for axis in tensor.shape.dim)[1:]
        if shape != spec.shape or tensor.elem_type != ELEMENT_TYPES[spec.dtype]:
            raise ParityError(
                f"output {spec.name} must be {spec.dtype} (batch, {spec.shape}), shape inference says {shape}"
            )


def check_file(path: Path, model: AutoGaze, metadata: Metadata, device: str = "cpu") -> dict[int, Parity]:
    """Run a file against PyTorch, at its smallest batch and, where it has a range, at a larger one."""
    low, high = metadata.batch
    reference = model if model.device.type == "cpu" else _on_cpu(model)
    engine, results = Engine.load(path, device), {}
    frames = min(CHECKED_FRAMES, metadata.frames)
    for batch in sorted({low, min(high, low + 2)}):
        results[batch] = compare(reference, engine, scenes(metadata, batch, frames))
    return results


def _on_cpu(model: AutoGaze) -> AutoGaze:
    twin = AutoGaze(replace(model.config))
    twin.load_state_dict({name: value.cpu() for name, value in model.state_dict().items()})
    twin.preprocessor = model.preprocessor
    return twin.eval()
