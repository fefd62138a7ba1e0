"""OpenVINO: runs an exported `.onnx` file on a CPU, with the tensors where they lie.

A model is compiled for every batch size that is used, in a second or two at base size: with fixed shapes it is faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from autogaze.export.metadata import FormatError, Metadata
from autogaze.export.targets import RunOptions
from autogaze.export.tensors import TensorSpec
from autogaze.extras import explain

try:
    import openvino as ov
except ImportError as error:
    raise explain(error, "this runtime") from error

_TYPES = {
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i64": torch.int64,
    "i32": torch.int32,
    "boolean": torch.bool,
    "u8": torch.uint8,
}


class OpenVinoSession:
    """An `.onnx` file on the CPU; see `autogaze.export.runner.Session`."""

    def __init__(self, path: Path, asked: RunOptions) -> None:
        if asked.device is not None and asked.device.type != "cpu":
            raise ValueError(f"OpenVINO runs on cpu here, got {asked.device}")
        if asked.stream is not None or asked.cuda_graph:
            raise ValueError("a CUDA graph or stream needs a CUDA device, and OpenVINO runs on the CPU here")
        self.device = torch.device("cpu")
        # float32 means float32: by default OpenVINO computes in bfloat16 where the CPU can, and chooses other ids
        self._settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if asked.threads:
            self._settings["INFERENCE_NUM_THREADS"] = asked.threads
        self._core = ov.Core()
        try:
            self._model = self._core.read_model(str(path))
        except RuntimeError as error:
            raise FormatError(f"{path}: OpenVINO cannot read it (cut short, or not ONNX): {error}") from error
        self.metadata = Metadata.from_properties(_properties(self._model), str(path))
        self.inputs = tuple(_spec(port) for port in self._model.inputs)
        self.outputs = tuple(_spec(port) for port in self._model.outputs)
        self._compiled: dict[int, Any] = {}  # batch -> compiled model
        self._compiling = Lock()

    def bind(self, inputs: dict[str, Tensor], outputs: dict[str, Tensor], repeated: bool = False) -> Callable[[], None]:
        """See `Session.bind`; every call has a request of its own, so threads do not disturb each other."""
        request = self._for_batch(len(next(iter(inputs.values())))).create_infer_request()
        for name, tensor in (inputs | outputs).items():
            request.set_tensor(name, _shared(tensor))
        keep = (inputs, outputs)  # the request holds bare addresses

        def call(keep: Any = keep) -> None:
            request.start_async()
            request.wait()

        return call

    def scope(self) -> Any:
        """See `Session.scope`."""
        return nullcontext()

    def hand_over(self, tensors: Iterable[Tensor]) -> None:
        """See `Session.hand_over`."""

    def _for_batch(self, batch: int) -> Any:
        with self._compiling:
            if batch not in self._compiled:
                model = self._model.clone()
                model.reshape({spec.name: [batch, *spec.shape] for spec in self.inputs})
                self._compiled[batch] = self._core.compile_model(model, "CPU", self._settings)
            return self._compiled[batch]


def _properties(model: Any) -> dict[str, str]:
    """The file's text keys and values, which OpenVINO keeps as facts of the framework."""
    if not model.has_rt_info("framework"):
        return {}
    return {key: str(value) for key, value in model.get_rt_info("framework").value.items()}


def _spec(port: Any) -> TensorSpec:
    kind, shape = port.element_type.get_type_name(), list(port.partial_shape)[1:]
    if kind not in _TYPES or any(side.is_dynamic for side in shape):
        raise FormatError(f"tensor {port.any_name} of {kind} {port.partial_shape} is in no export")
    return TensorSpec(port.any_name, _TYPES[kind], tuple(side.get_length() for side in shape))


def _shared(tensor: Tensor) -> Any:
    """The same memory as a tensor of OpenVINO's."""
    if tensor.dtype == torch.bfloat16:  # numpy has none
        return ov.Tensor(tensor.view(torch.int16).numpy(), ov.Shape(tensor.shape), ov.Type.bf16)
    return ov.Tensor(tensor.numpy(), shared_memory=True)
