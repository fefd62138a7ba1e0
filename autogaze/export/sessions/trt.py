"""TensorRT: opens an `.engine` file and runs it in a CUDA stream, with tensors bound where they lie."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from autogaze.export.engine_file import RUNTIMES, EngineFile, read_engine, torch_type
from autogaze.export.metadata import FormatError
from autogaze.export.sessions.cuda_stream import WorkStream, cuda_device
from autogaze.export.sessions.scratch import Scratch
from autogaze.export.targets import RunOptions
from autogaze.export.tensors import TensorSpec


class TrtSession:
    """An `.engine` file on its GPU; see `autogaze.export.runner.Session`."""

    def __init__(self, path: Path, asked: RunOptions) -> None:
        device = torch.device("cuda") if asked.device is None else asked.device
        file = read_engine(path)  # first: a damaged file is refused wherever it is opened
        self.metadata = file.metadata
        trt, facts = _runtime_package(path, file), file.facts
        if facts.version != trt.__version__ and not facts.version_compatible:
            raise ValueError(
                f"{path}: built with {facts.runtime} {facts.version}, this is {trt.__version__}; export it again, or "
                "install that version"
            )
        if not torch.cuda.is_available():
            raise ValueError(f"{path}: a TensorRT engine needs a CUDA GPU; export ONNX to run on a CPU")
        if device.type != "cuda":
            raise ValueError(f"{path}: a TensorRT engine runs on cuda, got device {device}")
        self.device = cuda_device(device)
        self._work = WorkStream(asked.stream, self.device)
        with torch.cuda.device(self.device):
            self._logger = trt.Logger(trt.Logger.ERROR)
            self._runtime = trt.Runtime(self._logger)
            if facts.version_compatible:  # such an engine brings host code along, and can't be opened without this
                self._runtime.engine_host_code_allowed = True
            self._engine = self._runtime.deserialize_cuda_engine(file.plan)
            if self._engine is None:
                here = "sm_{}{}".format(*torch.cuda.get_device_capability())
                raise ValueError(
                    f"{path}: built for {facts.hardware} with {facts.runtime} {facts.version}, cannot run on {here}; "
                    "export it again here"
                )
            user_managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
            self._context = self._engine.create_execution_context(user_managed)
            if self._context is None:
                raise RuntimeError(f"{path}: TensorRT made no execution context (GPU memory full?); its log says why")
        self._one_at_a_time, self._scratch = Lock(), Scratch.of(self.device)
        self.inputs, self.outputs = _specs(trt, self._engine)
        if (self.inputs, self.outputs) != (file.facts.inputs, file.facts.outputs):
            raise FormatError(f"{path}: the plan's inputs and outputs are not those that the file names")

    def bind(self, inputs: dict[str, Tensor], outputs: dict[str, Tensor], repeated: bool = False) -> Callable[[], None]:
        """See `Session.bind`; all calls share one execution context, so each names its tensors anew."""

        def call() -> None:
            with self._one_at_a_time:
                for name, tensor in inputs.items():
                    self._context.set_input_shape(name, tuple(tensor.shape))
                    self._context.set_tensor_address(name, tensor.data_ptr())
                for name, tensor in outputs.items():
                    self._context.set_tensor_address(name, tensor.data_ptr())
                self._scratch.use(_scratch_bytes(self._context, self._engine), self._work.stream, self._enqueue)

        return call

    def _enqueue(self, address: int, size: int) -> None:
        if hasattr(self._context, "set_device_memory"):
            self._context.set_device_memory(address, size)
        else:
            self._context.device_memory = address
        if not self._context.execute_async_v3(self._work.stream.cuda_stream):
            raise RuntimeError("TensorRT could not run the engine; its log on stderr says why")

    def scope(self) -> Any:
        """See `Session.scope`."""
        return self._work.scope()

    def hand_over(self, tensors: Iterable[Tensor]) -> None:
        """See `Session.hand_over`."""
        self._work.hand_over(tensors)


def _runtime_package(path: Path, file: EngineFile) -> Any:
    facts = file.facts
    try:
        return importlib.import_module(facts.runtime)  # one of RUNTIMES: `read_engine` lets no other through
    except ModuleNotFoundError as error:
        package = RUNTIMES[facts.runtime]
        raise ImportError(
            f"{path}: this engine needs {facts.runtime}: pip install {package}=={facts.version}"
        ) from error


def _scratch_bytes(context: Any, engine: Any) -> int:
    """Scratch memory that a call of the shapes set needs; of the largest shapes where TensorRT is too old to say."""
    for_shapes = getattr(context, "update_device_memory_size_for_shapes", None)
    return int(for_shapes() if for_shapes is not None else engine.device_memory_size)


def _specs(trt: Any, engine: Any) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of an engine, in its order."""
    found: tuple[list[TensorSpec], list[TensorSpec]] = ([], [])
    for i in range(engine.num_io_tensors):
        name = engine.get_tensor_name(i)
        spec = TensorSpec(
            name, torch_type(trt, engine.get_tensor_dtype(name)), tuple(engine.get_tensor_shape(name))[1:]
        )
        found[engine.get_tensor_mode(name) != trt.TensorIOMode.INPUT].append(spec)
    return tuple(found[0]), tuple(found[1])
