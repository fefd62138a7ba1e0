"""Exported ONNX files on a GPU: the gazes of PyTorch, in any stream, with a CUDA graph, no node left behind."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch

from autogaze.model import AutoGaze, AutoGazeConfig

pytest.importorskip("onnx", reason="needs the export extra: onnx")
ort = pytest.importorskip("onnxruntime", reason="needs the export extra: onnxruntime-gpu")

from autogaze.export import Engine  # noqa: E402
from autogaze.export.onnx import ExportOptions, export_onnx  # noqa: E402
from autogaze.export.parity import compare, scenes  # noqa: E402

pytestmark = pytest.mark.gpu
FRAMES = 6


@pytest.fixture(scope="module")
def model() -> AutoGaze:
    """Random weights whose best id wins clearly, and to which what is wrong matters."""
    torch.manual_seed(0)
    model = AutoGaze(AutoGazeConfig.tiny()).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name and "bias" not in name and not name.startswith("residual_map."):
                parameter *= 3.0
    return model


@pytest.fixture(scope="module")
def folder(model: AutoGaze, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of several kinds, as the command writes them."""
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("this onnxruntime has no CUDA: install onnxruntime-gpu")
    folder = tmp_path_factory.mktemp("gpu")
    for name, options in {
        "fp32": ExportOptions(gazing_ratio=0.1, batch=(1, 4)),
        "fp16": ExportOptions(gazing_ratio=0.1, batch=(1, 4), precision="fp16"),
        "uint8": ExportOptions(gazing_ratio=0.1, batch=(1, 4), input_size=(120, 160)),
        "clip": ExportOptions(gazing_ratio=0.05, batch=(1, 2), clip=True, frames=4),
    }.items():
        export_onnx(model, folder / f"{name}.onnx", options)
    return folder


@pytest.fixture(scope="module")
def video() -> torch.Tensor:
    return torch.randn(4, FRAMES, 3, 224, 224, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["fp32", "uint8", "clip"])
def test_a_file_on_cuda_chooses_what_pytorch_chooses(model: AutoGaze, folder: Path, name: str) -> None:
    engine = Engine.load(folder / f"{name}.onnx", "cuda")
    parity = compare(model, engine, scenes(engine.metadata, 2, 4))  # raises where they part without a near tie
    assert parity.slots > 0 and (parity.share == 1.0 or parity.ties > 0)


def test_a_float16_file_chooses_mostly_alike(model: AutoGaze, folder: Path, video: torch.Tensor) -> None:
    """Sharpened random weights are harder on float16 than trained ones, and a clip goes on from where it parted."""
    expected = model.generate(video[:, :1], 0.1)
    got = Engine.load(folder / "fp16.onnx", "cuda").generate(video[:, :1], 0.1).to("cpu")
    assert bool(got.chosen.all()) and float((got.ids == expected.ids).float().mean()) > 0.5


@pytest.mark.parametrize("name", ["fp32", "fp16", "uint8", "clip"])
def test_no_node_falls_to_the_cpu(folder: Path, name: str) -> None:
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    session = ort.InferenceSession(str(folder / f"{name}.onnx"), options, providers=["CUDAExecutionProvider"])
    assert session.get_providers()[0] == "CUDAExecutionProvider"  # ONNX Runtime without CUDA only warns


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("graph", [False, True])
def test_a_stream_equals_generate(folder: Path, video: torch.Tensor, graph: bool, named: bool) -> None:
    """Without a named stream results are used at once; in a named one, after it."""
    expected = Engine.load(folder / "fp32.onnx", "cuda").generate(video[:2], 0.1).to("cpu")
    stream = torch.cuda.Stream() if named else None
    engine = Engine.load(folder / "fp32.onnx", "cuda", stream=stream, cuda_graph=graph)
    frames, cuda = engine.stream(0.1, batch=2), video.cuda()
    for begun in range(2):
        for t in range(FRAMES):
            gaze = frames.step(cuda[:2, t])
            if stream is not None:
                torch.cuda.current_stream().wait_stream(stream)
            assert gaze.ids.device.type == "cuda"
            assert torch.equal(gaze.ids[:, 0].cpu(), expected.ids[:, t]), f"frame {t}, clip {begun}"
        frames.reset()


def test_graphs_of_several_streams_do_not_disturb_each_other(folder: Path, video: torch.Tensor) -> None:
    """Each captured call has addresses of its own; batches of other sizes and calls without a graph come between."""
    cuda, path = video.cuda(), folder / "fp32.onnx"
    engines = [Engine.load(path, "cuda"), Engine.load(path, "cuda", cuda_graph=True)]
    streams = [(engine, engine.stream(0.1), engine.stream(0.1, batch=3)) for engine in engines]
    for t in range(FRAMES):
        plain, captured = (
            (one.step(cuda[:1, t]), three.step(cuda[1:, t]), engine.generate(cuda[:2, : t + 1], 0.1))
            for engine, one, three in streams
        )
        for expected, got in zip(plain, captured, strict=True):  # of equal batches, so to the last bit
            assert torch.equal(got.ids, expected.ids) and torch.equal(got.task_loss, expected.task_loss), f"frame {t}"


def test_engines_share_a_process_and_a_stream(folder: Path, video: torch.Tensor) -> None:
    handle = torch.cuda.Stream().cuda_stream
    engines = [Engine.load(folder / "fp32.onnx", "cuda", stream=handle) for _ in range(2)]
    first, second = (engine.generate(video.cuda(), 0.1) for engine in engines)
    torch.cuda.synchronize()
    assert torch.equal(first.ids, second.ids) and first.chosen.any()


@pytest.mark.parametrize("form", ["call", "stream", "graph"])
@pytest.mark.parametrize("named", [False, True])
def test_an_engine_may_go_while_its_work_is_pending(folder: Path, video: torch.Tensor, form: str, named: bool) -> None:
    """Nothing of its session is freed in a callback of the stream, where CUDA forbids it and the process would end."""
    stream = torch.cuda.Stream() if named else None
    engine = Engine.load(folder / ("clip.onnx" if form == "call" else "fp32.onnx"), "cuda", stream, form == "graph")
    session = weakref.ref(engine.session)
    if form == "call":
        gaze = engine.generate(video[:1, :4].cuda(), 0.05)
    else:
        frames = engine.stream(0.1)
        for t in range(FRAMES):
            gaze = frames.step(video[:1, t].cuda())
        del frames
    del engine
    assert session() is None  # at once, not when garbage is collected
    torch.cuda.synchronize()
    assert bool(gaze.chosen.all())


def test_frames_come_from_anywhere(folder: Path, video: torch.Tensor) -> None:
    engine = Engine.load(folder / "fp32.onnx", "cuda")
    expected = engine.generate(video[:1], 0.1).ids
    assert expected.device.type == "cuda"
    for frames in (video[:1].numpy(), video[:1].cuda(), video[:1].pin_memory()):
        assert torch.equal(engine.generate(frames, 0.1).ids, expected)


def test_results_are_ordered_after_the_default_stream(folder: Path, video: torch.Tensor) -> None:
    """ONNX Runtime takes the default stream's handle (0) for none given; its work must still come after the copies."""
    engine = Engine.load(folder / "fp32.onnx", "cuda", stream=torch.cuda.default_stream())
    expected, cuda, busy = engine.generate(video[:1], 0.1).ids, video[:1].cuda(), torch.randn(4096, 4096).cuda()
    torch.cuda.synchronize()
    for _ in range(3):
        late = torch.zeros_like(cuda)
        for _ in range(20):  # some milliseconds
            busy = (busy @ busy).clamp(-1, 1)
        late.copy_(cuda)
        assert torch.equal(engine.generate(late, 0.1).ids, expected)
