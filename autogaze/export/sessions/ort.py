"""ONNX Runtime: opens an exported `.onnx` file and runs it with bound tensors, on a CPU or a CUDA device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autogaze.export.metadata import FormatError, Metadata
from autogaze.export.sessions.cuda_stream import WorkStream, cuda_device
from autogaze.export.targets import RunOptions
from autogaze.export.tensors import TensorSpec
from autogaze.extras import explain

try:
    import onnxruntime as ort
except ImportError as error:
    raise explain(error, "running .onnx files") from error

CUDA = "CUDAExecutionProvider"
_TYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(bfloat16)": torch.bfloat16,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(bool)": torch.bool,
    "tensor(uint8)": torch.uint8,
}
_NUMBERS = {
    torch.float32: 1,
    torch.uint8: 2,
    torch.int32: 6,
    torch.int64: 7,
    torch.bool: 9,
    torch.float16: 10,
    torch.bfloat16: 16,
}  # onnx.TensorProto's


class OrtSession:
    """An `.onnx` file on its device; see `autogaze.export.runner.Session`."""

    def __init__(self, path: Path, asked: RunOptions) -> None:
        stream, cuda_graph, threads = asked.stream, asked.cuda_graph, asked.threads
        self.device, self.cuda_graph, self._graphs = _pick_device(asked.device), cuda_graph, count(1)
        if (cuda_graph or stream is not None) and self.device.type != "cuda":
            raise ValueError(f"a CUDA graph or stream needs a CUDA device, got {self.device}")
        self._work = WorkStream(stream, self.device) if self.device.type == "cuda" else None
        self._one_at_a_time = Lock()
        options = ort.SessionOptions()
        options.enable_mem_reuse = False  # its planner takes time quadratic in the nodes, and the arena reuses anyway
        options.log_severity_level = 3
        if threads:
            options.intra_op_num_threads = threads
        # a thread that spins while it waits burns what others want: 108 against 81 ms of two threads a frame
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.set_denormal_as_zero", "1")  # of its own threads; see `flushed`
        self._session = _open(path, options, self._providers())
        self.metadata = Metadata.from_properties(self._session.get_modelmeta().custom_metadata_map, str(path))
        self.inputs = tuple(_spec(path, node) for node in self._session.get_inputs())
        self.outputs = tuple(_spec(path, node) for node in self._session.get_outputs())

    def __del__(self) -> None:
        # a graph's replay in a named stream may still read what the session is about to free
        work = self.__dict__.get("_work")
        if work is not None:
            work.stream.synchronize()

    def bind(self, inputs: dict[str, Tensor], outputs: dict[str, Tensor], repeated: bool = False) -> Callable[[], None]:
        """See `Session.bind`."""
        binding, place = self._session.io_binding(), (self.device.type, self.device.index or 0)
        for name, tensor in inputs.items():
            binding.bind_input(name, *place, _NUMBERS[tensor.dtype], tuple(tensor.shape), tensor.data_ptr())
        for name, tensor in outputs.items():
            binding.bind_output(name, *place, _NUMBERS[tensor.dtype], tuple(tensor.shape), tensor.data_ptr())
        options, keep = ort.RunOptions(), (inputs, outputs)  # the binding holds bare addresses
        if self._work is not None:
            # every call that is repeated has a graph of its own; -1 runs without one
            graph = next(self._graphs) if self.cuda_graph and repeated else -1
            options.add_run_config_entry("gpu_graph_id", str(graph))
            # A replay leaves nothing behind, so in a named stream nobody waits for it. Other calls wait: ONNX Runtime
            # gives their pinned buffers back only at an end that waits. Otherwise the buffers gather until the session
            # goes, and are freed in a callback of the stream that may be the last to hold the pool of pinned memory:
            # it then calls cudaFreeHost, which CUDA forbids there, and the process ends.
            if graph != -1 and not self._work.joined:
                options.add_run_config_entry("disable_synchronize_execution_providers", "1")

        # On a CPU calls of several threads run side by side. On CUDA all of them work in one stream, and a capture must
        # not see another's work.
        around: Any = flushed if self._work is None else lambda: self._one_at_a_time

        def call(keep: Any = keep) -> None:
            with around():
                self._session.run_with_iobinding(binding, options)

        return call

    def scope(self) -> Any:
        """See `Session.scope`."""
        return nullcontext() if self._work is None else self._work.scope()

    def hand_over(self, tensors: Iterable[Tensor]) -> None:
        """See `Session.hand_over`."""
        if self._work is not None:
            self._work.hand_over(tensors)

    def _providers(self) -> list[Any]:
        if self._work is None:
            return ["CPUExecutionProvider"]
        settings = {
            "device_id": str(self.device.index or 0),
            "user_compute_stream": str(self._work.stream.cuda_stream),
            "use_tf32": "0",
            "cudnn_conv_algo_search": "HEURISTIC",  # timing them would let two sessions round differently
            "enable_cuda_graph": "1" if self.cuda_graph else "0",
        }
        return [(CUDA, settings), "CPUExecutionProvider"]


@contextmanager
def flushed() -> Iterator[None]:
    """Let the calling thread, which works along, take numbers below 1e-38 for zero, as the session's own threads do.

    The softmax of a token that may not be seen is such a number on its way to 0, and CPUs are slow at them: attention
    in a stream's first frames took 26 instead of 15 ms a layer. Ids do not change.
    """
    before = float(np.float32(1e-39) * np.float32(1.0)) == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def _open(path: Path, options: Any, providers: list[Any]) -> Any:
    """A session, or one clear error."""
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    broken = (
        errors.InvalidProtobuf,
        errors.InvalidGraph,
        errors.NoSuchFile,
        errors.Fail,
        errors.InvalidArgument,
        errors.NotImplemented,
        errors.RuntimeException,
        errors.EPFail,
    )
    try:
        session = ort.InferenceSession(str(path), options, providers=providers)
    except broken as error:
        raise FormatError(f"{path}: ONNX Runtime cannot read it (cut short, or not ONNX): {error}") from error
    wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
    if wanted not in session.get_providers():
        raise ValueError(
            f"{path}: ONNX Runtime {ort.__version__} could not start {wanted}; install the onnxruntime-gpu "
            "that fits this CUDA, or use device='cpu'"
        )
    return session


def _pick_device(device: torch.device | str | None) -> torch.device:
    there = torch.cuda.is_available() and CUDA in ort.get_available_providers()
    if device is None:
        device = "cuda" if there else "cpu"
    device = torch.device(device)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"ONNX Runtime runs on cpu or cuda here, got {device}")
    if device.type == "cuda" and not there:
        raise ValueError(
            f"no CUDA device for ONNX Runtime {ort.__version__}: use device='cpu', or install onnxruntime-gpu"
        )
    return cuda_device(device) if device.type == "cuda" else device


def _spec(path: Path, node: Any) -> TensorSpec:
    if node.type not in _TYPES:
        raise FormatError(f"{path}: {node.name} is a {node.type}, which is in no export; export it again")
    return TensorSpec(node.name, _TYPES[node.type], tuple(node.shape[1:]))
