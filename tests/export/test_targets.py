"""The table of targets: OpenVINO beside ONNX Runtime, and what a new entry brings along."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from autogaze.model import AutoGaze, AutoGazeConfig

onnx = pytest.importorskip("onnx", reason="needs the export extra: onnx")
pytest.importorskip("onnxruntime", reason="needs the export extra: onnxruntime")

from autogaze.cli import export as command  # noqa: E402
from autogaze.cli.info import describe  # noqa: E402
from autogaze.export.metadata import FormatError, Metadata  # noqa: E402
from autogaze.export.onnx import ExportOptions, export_onnx  # noqa: E402
from autogaze.export.runner import Engine  # noqa: E402
from autogaze.export.targets import TARGETS, Target  # noqa: E402

CONFIG = AutoGazeConfig(
    residual_map=False,
    scales=(16, 32, 64), hidden_size=48, num_hidden_layers=2, num_attention_heads=3, head_dim=16, intermediate_size=96,
    num_multi_token_pred=4, max_num_frames=3, gazing_ratio=0.5, task_loss_requirement=0.7)  # fmt: skip


@pytest.fixture(scope="module", params=[False, True], ids=["published", "ours"])
def model(request: pytest.FixtureRequest) -> AutoGaze:
    torch.manual_seed(0)
    return AutoGaze(replace(CONFIG, residual_map=request.param)).eval()


@pytest.mark.parametrize("clip, precision", [(False, "fp32"), (True, "fp32"), (False, "fp16")])
@pytest.mark.parametrize("runtime", [one.name for one in TARGETS if ".onnx" in one.suffixes][1:])
def test_every_runtime_of_onnx_files_chooses_what_onnx_runtime_chooses(
    runtime: str, clip: bool, precision: str, model: AutoGaze, tmp_path: Path
) -> None:
    pytest.importorskip(runtime, reason=f"needs the {runtime} extra")
    path = tmp_path / "gaze.onnx"
    export_onnx(model, path, ExportOptions(clip=clip, gazing_ratio=0.3, precision=precision))
    ort, other = (Engine.load(path, "cpu", threads=1, runtime=name) for name in ("onnxruntime", runtime))
    assert other.metadata == ort.metadata and other.session.inputs == ort.session.inputs
    for batch in (1, 3):
        video = torch.randn(batch, 3, 3, 64, 64)
        free = ort.generate(video, None)
        assert free.task_loss is not None
        needed = float(free.task_loss[free.chosen].quantile(0.3))
        expected, got = ort.generate(video, 0.2, needed), other.generate(video, 0.2, needed)
        if precision == "fp32":
            assert torch.equal(got.ids, expected.ids) and torch.equal(got.chosen, expected.chosen)
            torch.testing.assert_close(got.task_loss, expected.task_loss, atol=1e-4, rtol=0, equal_nan=True)
        else:
            assert (got.ids == expected.ids).float().mean() > 0.5


def test_openvino_streams_and_refuses_what_it_does_not_have(model: AutoGaze, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="needs the openvino extra")
    path = tmp_path / "gaze.onnx"
    export_onnx(model, path, ExportOptions(gazing_ratio=0.3))
    engine = Engine.load(path, runtime="openvino")
    video, stream = torch.randn(1, 5, 3, 64, 64), engine.stream()
    whole = engine.generate(video)
    for t in range(5):
        assert torch.equal(stream.step(video[:, t]).ids, whole.ids[:, t : t + 1])
    for options in ({"device": "cuda"}, {"cuda_graph": True}, {"stream": 5}):
        with pytest.raises(ValueError, match="OpenVINO runs on"):
            Engine.load(path, runtime="openvino", **options)  # type: ignore[arg-type]
    path.write_bytes(b"not protobuf")
    with pytest.raises(FormatError, match="OpenVINO cannot read it"):
        Engine.load(path, runtime="openvino")
    graph = onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], []))
    onnx.save(graph, path)
    with pytest.raises(FormatError, match="not an autogaze export|cannot read it"):
        Engine.load(path, runtime="openvino")


def test_a_runtime_that_does_not_fit_is_named(tmp_path: Path) -> None:
    path = tmp_path / "gaze.onnx"
    path.touch()
    with pytest.raises(
        ValueError, match="runtime must be one of onnxruntime, openvino for such a file, got 'tensorrt'"
    ):
        Engine.load(path, runtime="tensorrt")


@dataclass(frozen=True)
class Written:
    path: str
    metadata: Metadata

    def words(self) -> str:
        return f"{self.path}: written"


def write_other(model: AutoGaze, path: Path, options: ExportOptions, *_: Any) -> Written:
    path.write_text("a file")
    return Written(str(path), options.metadata(model))


def open_other(path: Path, options: Any) -> Any:
    raise FormatError(f"opened {path.name} with {options.threads} threads")


OTHER = Target(
    "other", "other file", (".other",), f"{__name__}:open_other", lambda path: {"bytes": 6},
    "other", "write", f"{__name__}:write_other",
)  # fmt: skip


def test_one_entry_is_all_that_a_new_target_needs(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command has its option, `Engine.load` and `autogaze info` know its files."""
    TARGETS.append(OTHER)
    try:
        parser, path = argparse.ArgumentParser(), tmp_path / "gaze.other"
        command.add_arguments(parser)
        assert command.run(parser.parse_args([str(tiny_checkpoint), "--other", str(path)])) == 0
        assert "gaze.other: written" in capsys.readouterr().err
        assert describe(str(path)) == {"kind": "other file", "file": str(path), "bytes": 6}
        with pytest.raises(FormatError, match=r"opened gaze\.other with 2 threads"):
            Engine.load(path, threads=2)
    finally:
        TARGETS.remove(OTHER)
