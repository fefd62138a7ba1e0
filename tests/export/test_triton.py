"""The Triton model repository: its config is what Triton's own protobuf reads, and the client speaks to it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from autogaze.model import AutoGaze, AutoGazeConfig

pytest.importorskip("onnxruntime", reason="needs the export extra: onnxruntime")
pytest.importorskip("tritonclient.grpc", reason="needs tritonclient[grpc]")

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException

from autogaze.export.engine_file import EngineFacts, write_engine
from autogaze.export.graph.forms import input_specs, output_specs
from autogaze.export.onnx import ExportOptions, export_onnx
from autogaze.export.runner import Engine, allocate
from autogaze.export.tensors import state_of
from autogaze.export.triton import write_repository
from autogaze.export.triton_client import TritonGaze

CONFIG = AutoGazeConfig(
    residual_map=False,
    scales=(16, 32, 64), hidden_size=48, num_hidden_layers=2, num_attention_heads=3, head_dim=16, intermediate_size=96,
    num_multi_token_pred=4, max_num_frames=3, gazing_ratio=0.5, task_loss_requirement=0.7)  # fmt: skip


@pytest.fixture(scope="module", params=[False, True], ids=["published", "ours"])
def model(request: pytest.FixtureRequest) -> AutoGaze:
    """As published, and with the error of what is known."""
    torch.manual_seed(0)
    return AutoGaze(replace(CONFIG, residual_map=request.param)).eval()


@pytest.fixture(scope="module")
def exported(model: AutoGaze, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ours" if model.config.residual_map else "published") / "gaze.onnx"
    export_onnx(model, path, ExportOptions(gazing_ratio=0.3, batch=(1, 4)))
    return path


def read(folder: Path) -> model_config_pb2.ModelConfig:
    return text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def test_a_frame_file_is_served_as_sequences_with_implicit_state(exported: Path, tmp_path: Path) -> None:
    folder = write_repository(exported, tmp_path)
    config = read(folder)
    session = Engine.load(exported, "cpu", threads=1).session
    assert (config.name, config.platform, config.max_batch_size) == ("autogaze", "onnxruntime_onnx", 4)
    assert (folder / "1" / "model.onnx").read_bytes() == exported.read_bytes()
    state = {entry.input_name: entry for entry in config.sequence_batching.state}
    assert tuple(state) == tuple(spec.name for spec in state_of(session.inputs))
    assert ("canvas" in state) == exported.parent.name.startswith("ours")
    shapes = {spec.name: spec.shape for spec in session.inputs}
    for name, entry in state.items():
        assert entry.output_name == f"next_{name}"
        assert tuple(entry.dims) == shapes[name] == tuple(entry.initial_state[0].dims)
        assert entry.initial_state[0].zero_data
    named = {entry.name for entry in config.input} | set(state)
    assert named == {spec.name for spec in session.inputs}
    assert {entry.name for entry in config.output} == {"ids", "chosen", "task_loss", "count"}
    assert config.parameters["autogaze.budget"].string_value == str(session.metadata.budget)


def test_a_clip_file_is_batched_freely(model: AutoGaze, tmp_path: Path) -> None:
    export_onnx(model, tmp_path / "clip.onnx", ExportOptions(clip=True, gazing_ratio=0.3, batch=(1, 2)))
    config = read(write_repository(tmp_path / "clip.onnx", tmp_path / "models", "clips"))
    assert config.name == "clips" and config.HasField("dynamic_batching")
    assert [entry.name for entry in config.input] == ["frames", "budget", "requirement"]


def test_an_engine_is_served_as_its_bare_plan(model: AutoGaze, tmp_path: Path) -> None:
    metadata = ExportOptions(gazing_ratio=0.3, precision="fp16").metadata(model)
    facts = EngineFacts("tensorrt", "0.0", "sm_00", False, input_specs(model, metadata), output_specs(model, metadata))
    write_engine(tmp_path / "gaze.engine", b"a plan", metadata, facts)
    folder = write_repository(tmp_path / "gaze.engine", tmp_path / "models")
    assert (folder / "1" / "model.plan").read_bytes() == b"a plan"
    assert read(folder).platform == "tensorrt_plan"
    assert read(folder).sequence_batching.state[1].data_type == model_config_pb2.TYPE_FP16


def test_writing_again_replaces_the_model_and_leaves_others(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    folder = write_repository(exported, tmp_path)
    (folder / "stale").touch()
    assert write_repository(exported, tmp_path) == folder and not (folder / "stale").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["autogaze", "other"]


class FakeServer:
    """A stand-in for Triton on the repository: implicit state by sequence, around the same exported file."""

    def __init__(self, exported: Path, repository: Path) -> None:
        self.config, self.engine = read(repository), Engine.load(exported, "cpu", threads=1)
        self.memory: dict[int, dict[str, torch.Tensor]] = {}

    def get_model_config(self, name: str) -> model_config_pb2.ModelConfig:
        class Answer:
            config = self.config

        return Answer()  # type: ignore[return-value]

    def infer(self, name: str, inputs: list, outputs: list, sequence_id: int, sequence_start: bool, sequence_end: bool):  # type: ignore[no-untyped-def]
        session = self.engine.session
        if not sequence_start and sequence_id not in self.memory:  # as Triton says it
            raise InferenceServerException(
                f"inference request for sequence {sequence_id} to model '{name}' must specify the START flag on the "
                "first request of the sequence"
            )
        if sequence_start:
            self.memory[sequence_id] = allocate(session, state_of(session.inputs), 1)
        dtypes = {spec.name: spec for spec in session.inputs}
        tensors = dict(self.memory[sequence_id])
        for tensor in inputs:
            spec = dtypes[tensor.name()]
            raw = np.frombuffer(tensor._raw_content, dtype=str(spec.dtype).removeprefix("torch."))
            tensors[spec.name] = torch.from_numpy(raw.copy()).reshape(1, *spec.shape)
        results = allocate(session, session.outputs, 1)
        session.bind(tensors, results)()
        self.memory[sequence_id] = {key: results[f"next_{key}"] for key in self.memory[sequence_id]}
        if sequence_end:
            del self.memory[sequence_id]

        class Answer:
            def as_numpy(self, key: str) -> np.ndarray:
                return results[key].numpy()

        return Answer()


def test_a_stream_that_paused_too_long_begins_anew_with_one_warning(
    model: AutoGaze, exported: Path, tmp_path: Path
) -> None:
    server = FakeServer(exported, write_repository(exported, tmp_path))
    video = torch.randn(4, 3, 64, 64)
    with TritonGaze(client=server).stream(None) as client:
        for frame in video[:2]:
            client.step(frame.numpy())
        server.memory.clear()  # the idle limit
        again = model.stream(6.2 / 21)
        with pytest.warns(UserWarning, match="forgotten this stream after frame 2 .* begins anew") as warned:
            for frame in video[2:]:
                expected, got = again.step(frame[None]), client.step(frame.numpy())
                assert torch.equal(got.ids[got.chosen], expected.ids[expected.chosen])
        assert len(warned) == 1
        server.memory.clear()  # and a stream that is over and forgotten is no error


def test_what_triton_cannot_load_is_refused(model: AutoGaze, tmp_path: Path) -> None:
    """A real server refuses a fixed batch, and has neither bfloat16 in ONNX Runtime nor TensorRT for RTX."""
    from autogaze.export.triton import check_servable

    for batch in ((1, 1), (4, 4), (2, 8)):
        with pytest.raises(ValueError, match="refuses a file of a fixed batch: export with --batch 1:M"):
            check_servable(ExportOptions(batch=batch), tmp_path / "gaze.onnx")
    with pytest.raises(ValueError, match="no bfloat16 memory in Triton"):
        check_servable(ExportOptions(precision="bf16"), tmp_path / "gaze.onnx")
    metadata = ExportOptions(gazing_ratio=0.3).metadata(model)
    facts = EngineFacts(
        "tensorrt_rtx", "1.2", "rtx", False, input_specs(model, metadata), output_specs(model, metadata)
    )
    write_engine(tmp_path / "gaze.engine", b"a plan", metadata, facts)
    with pytest.raises(ValueError, match="engines of the tensorrt package, not of tensorrt_rtx"):
        write_repository(tmp_path / "gaze.engine", tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_the_client_streams_frame_by_frame(model: AutoGaze, exported: Path, tmp_path: Path) -> None:
    server = FakeServer(exported, write_repository(exported, tmp_path))
    served = TritonGaze(client=server)
    video = torch.randn(4, 3, 64, 64)
    stream = model.stream(0.2)
    with served.stream(gazing_ratio=0.2) as client:
        for frame in video:
            expected, got = stream.step(frame[None]), client.step(frame.numpy())
            assert torch.equal(got.ids[got.chosen], expected.ids[expected.chosen])
        assert len(server.memory) == 1
    assert not server.memory  # the server was told that the stream is over
    with pytest.raises(ValueError, match="spends at most"):
        served.stream(gazing_ratio=0.9)
    with pytest.raises(ValueError, match=r"expected float32 \(3, 64, 64\)"):
        served.stream().step(np.zeros((64, 64, 3), np.uint8))
