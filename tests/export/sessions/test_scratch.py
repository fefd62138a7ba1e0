"""TensorRT in Python on a mock of it: streams and engines of one GPU share scratch memory, sized by what is asked."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from autogaze.export.engine_file import EngineFacts, write_engine
from autogaze.export.runner import Engine
from autogaze.export.sessions import scratch, trt
from autogaze.model import AutoGaze, AutoGazeConfig

pytest.importorskip("onnx", reason="needs the export extra: onnx")

from autogaze.export.graph.forms import input_specs, output_specs  # noqa: E402
from autogaze.export.onnx import ExportOptions  # noqa: E402

BYTES = 1000  # of scratch, a sample


class Stream:
    """A CUDA stream that does its work when somebody waits for it."""

    cuda_stream = 1

    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []

    def record_event(self, _: object = None) -> Callable[[], None]:
        return self.drain

    def wait_event(self, event: Callable[[], None]) -> None:
        self.work.append(event)

    def drain(self) -> None:
        work, self.work = self.work, []
        for step in work:
            step()


class Context:
    """Writes into all of its scratch, and finds there what it wrote."""

    stream: Stream  # of the session that is being opened

    def __init__(self) -> None:
        self.tensors: dict[str, int] = {}
        self.batch, self.memory, self.queue = 0, (0, 0), Context.stream

    def set_input_shape(self, _: str, shape: tuple[int, ...]) -> None:
        self.batch = shape[0]

    def set_tensor_address(self, name: str, address: int) -> None:
        self.tensors[name] = address

    def update_device_memory_size_for_shapes(self) -> int:
        return BYTES * self.batch

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= BYTES * self.batch
        self.memory = address, size

    def execute_async_v3(self, _: int) -> bool:
        memory = self.memory
        self.queue.work.append(lambda: given.append(memory))
        return True


given: list[tuple[int, int]] = []  # scratch of every call that ran: address and bytes


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], tuple[Engine, Stream]]]:
    """Opens an engine on the mock, in a stream of its own."""
    model = AutoGaze(replace(AutoGazeConfig.tiny(), max_num_frames=2))
    metadata = ExportOptions(gazing_ratio=0.05, batch=(1, 4)).metadata(model)
    specs = input_specs(model, metadata), output_specs(model, metadata)
    write_engine(tmp_path / "gaze.engine", b"plan", metadata, EngineFacts("tensorrt", "10.9", "sm_90", False, *specs))
    contexts: list[object] = []

    def context(strategy: object) -> Context:
        contexts.append(strategy)
        return Context()

    package = SimpleNamespace(
        __version__="10.9",
        Logger=lambda _: None,
        Runtime=lambda _: SimpleNamespace(
            deserialize_cuda_engine=lambda _: SimpleNamespace(create_execution_context=context)
        ),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user"),
    )
    package.Logger.ERROR = 0
    monkeypatch.setitem(sys.modules, "tensorrt", package)
    monkeypatch.setattr(trt, "_specs", lambda *_: specs)
    monkeypatch.setattr(trt, "cuda_device", lambda _: torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)

    def opened() -> tuple[Engine, Stream]:
        stream = Context.stream = Stream()
        work = SimpleNamespace(stream=stream, scope=nullcontext, hand_over=lambda _: None)
        monkeypatch.setattr(trt, "WorkStream", lambda *_: work)
        return Engine.load(tmp_path / "gaze.engine", "cuda"), stream

    given.clear()
    yield opened
    assert set(contexts) == {"user"}


def test_streams_of_several_engines_share_scratch_of_the_largest_call(
    load: Callable[[], tuple[Engine, Stream]],
) -> None:
    (first, one), (second, two) = load(), load()
    frame = torch.zeros(1, 3, 224, 224)
    streams = [first.stream(), first.stream(), second.stream()]
    for stream in streams:
        stream.step(frame)
    assert not given  # nobody waited on the host
    two.drain()  # the last stream draws along what came before it
    assert len(given) == 3 and len(set(given)) == 1 and given[0][1] == BYTES
    given.clear()
    second.stream(batch=4).step(frame.expand(4, -1, -1, -1))
    streams[0].step(frame)
    one.drain()
    assert [size for _, size in given] == [4 * BYTES, 4 * BYTES]


def test_scratch_goes_with_the_last_engine(load: Callable[[], tuple[Engine, Stream]]) -> None:
    (first, _), (second, _) = load(), load()
    first.stream().step(torch.zeros(1, 3, 224, 224))
    assert len(scratch._OF_DEVICE) == 1
    del first, second
    assert not scratch._OF_DEVICE
