"""Exported ONNX files on a GPU: the gazes of the CPU, in a named stream, with a CUDA graph, no node left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from autogaze.model import AutoGaze, AutoGazeConfig

pytest.importorskip("onnx", reason="needs the export extra: onnx")
ort = pytest.importorskip("onnxruntime", reason="needs the export extra: onnxruntime-gpu")

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("this onnxruntime has no CUDA: install onnxruntime-gpu")
    from autogaze.export.onnx import ExportOptions, export_onnx

    torch.manual_seed(0)
    model = AutoGaze(AutoGazeConfig.tiny())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name and "bias" not in name:
                parameter *= 3.0
    path = tmp_path_factory.mktemp("gpu") / "gaze.onnx"
    export_onnx(model, path, ExportOptions(gazing_ratio=0.1, batch=(1, 4)))
    return path


@pytest.fixture(scope="module")
def video() -> torch.Tensor:
    return torch.randn(2, 6, 3, 224, 224, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("graph", [False, True])
def test_cuda_equals_cpu(exported: Path, video: torch.Tensor, graph: bool) -> None:
    from autogaze.export import Engine

    expected = Engine.load(exported, "cpu").generate(video, 0.1)
    stream = torch.cuda.Stream()
    engine = Engine.load(exported, "cuda", stream=stream, cuda_graph=graph)
    frames = engine.stream(0.1, batch=2)
    for t in range(video.shape[1]):
        gaze = frames.step(video[:, t].cuda())
        stream.synchronize()
        assert gaze.ids.device.type == "cuda"
        assert torch.equal(gaze.ids[:, 0].cpu(), expected.ids[:, t]), f"frame {t}"


def test_no_node_falls_to_the_cpu(exported: Path) -> None:
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    ort.InferenceSession(str(exported), options, providers=["CUDAExecutionProvider"])


def test_engines_share_a_process_and_a_stream(exported: Path, video: torch.Tensor) -> None:
    from autogaze.export import Engine

    handle = torch.cuda.Stream().cuda_stream
    engines = [Engine.load(exported, "cuda", stream=handle) for _ in range(2)]
    first, second = (engine.generate(video.cuda(), 0.1) for engine in engines)
    torch.cuda.synchronize()
    assert torch.equal(first.ids, second.ids)
