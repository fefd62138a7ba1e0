"""Engine files: built for real with tensorrt_rtx on the CPU, read back, and refused when damaged, foreign or newer."""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
import torch

from autogaze.model import AutoGaze, AutoGazeConfig

pytest.importorskip("onnx", reason="needs the export extra: onnx")
pytest.importorskip("onnxruntime", reason="needs the export extra: onnxruntime")

from autogaze.export.engine_file import FOOTER, EngineFacts, find_tensorrt, read_engine, write_engine
from autogaze.export.graph.forms import input_specs, output_specs, write_graph
from autogaze.export.metadata import FormatError, Metadata
from autogaze.export.onnx import ExportOptions
from autogaze.export.runner import Engine
from autogaze.export.tensorrt import BuildOptions, EngineBuilder, export_tensorrt
from autogaze.export.tensors import check_specs

SMALL = AutoGazeConfig(
    residual_map=False,
    scales=(16, 32, 64), hidden_size=48, num_hidden_layers=2, num_attention_heads=3, head_dim=16, intermediate_size=96,
    num_multi_token_pred=4, max_num_frames=3, gazing_ratio=0.5, task_loss_requirement=0.7)  # fmt: skip
OPTIONS = ExportOptions(gazing_ratio=0.3, batch=(1, 2), precision="fp16")


@pytest.fixture(scope="module", params=[False, True], ids=["published", "ours"])
def model(request: pytest.FixtureRequest) -> AutoGaze:
    """As published, and with the error of what is known."""
    torch.manual_seed(0)
    return AutoGaze(replace(SMALL, residual_map=request.param)).eval()


@pytest.fixture
def fake(model: AutoGaze, tmp_path: Path) -> Path:
    """A whole engine file around a plan that no runtime knows."""
    metadata = OPTIONS.metadata(model)
    facts = EngineFacts("tensorrt", "0.0", "sm_00", False, input_specs(model, metadata), output_specs(model, metadata))
    write_engine(tmp_path / "gaze.engine", b"plan" * 100, metadata, facts)
    return tmp_path / "gaze.engine"


def test_metadata_reads_back(model: AutoGaze, fake: Path) -> None:
    file = read_engine(fake)
    assert file.metadata == OPTIONS.metadata(model)
    assert file.plan == b"plan" * 100
    assert file.facts.inputs == input_specs(model, file.metadata)
    calibrated = AutoGaze(model.config).with_calibration(((0.5, 0.25), (0.7, 0.6)))
    metadata = OPTIONS.metadata(calibrated)
    assert Metadata.from_properties(metadata.to_properties(), "x") == metadata


@pytest.mark.parametrize("keep", [0, 10, 200, -1])
def test_a_file_cut_short_is_refused(fake: Path, keep: int) -> None:
    fake.write_bytes(fake.read_bytes()[:keep])
    with pytest.raises(FormatError, match="cut short|damaged"):
        Engine.load(fake)


def test_a_damaged_file_is_refused(fake: Path) -> None:
    data = bytearray(fake.read_bytes())
    data[50] ^= 1
    fake.write_bytes(data)
    with pytest.raises(FormatError, match="do not add up"):
        Engine.load(fake)


def test_facts_that_make_no_sense_are_refused(model: AutoGaze, tmp_path: Path) -> None:
    """Whole by its checksum, and yet not what we write."""
    metadata = OPTIONS.metadata(model)
    specs = input_specs(model, metadata), output_specs(model, metadata)
    for old, new, message in (
        ("engine.runtime=", "engine.engine=", "damaged list of facts"),
        ("engine.runtime=tensorrt", "engine.runtime=antigravity", "runtime must be tensorrt or tensorrt_rtx"),
        (":float16:", ":complex:", "damaged list of facts"),
        ("autogaze.kind=frame", "autogaze.kind=film", "damaged metadata .kind must be frame or clip"),
        ("autogaze.batch=1,2", "autogaze.batch=2,1", "damaged metadata"),
        ("\nautogaze.", "\n\nautogaze.", "damaged list of facts"),
    ):  # fmt: skip
        path = tmp_path / "odd.engine"
        write_engine(path, b"plan", metadata, EngineFacts("tensorrt", "0.0", "sm_00", False, *specs))
        text = path.read_bytes()[4 : -FOOTER.size].decode().replace(old, new).encode()
        path.write_bytes(b"plan" + text + FOOTER.pack(4, len(text), zlib.crc32(b"plan" + text), b"AUTOGAZE"))
        with pytest.raises(FormatError, match=message):
            read_engine(path)


def test_an_engine_of_another_version_is_refused(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__name__="tensorrt", __version__="10.1"))
    with pytest.raises(ValueError, match=r"built with tensorrt 0\.0, this is 10\.1; export it again"):
        Engine.load(fake)


def test_a_newer_format_is_refused(model: AutoGaze, tmp_path: Path) -> None:
    properties = OPTIONS.metadata(model).to_properties() | {"autogaze.format": "99"}
    with pytest.raises(FormatError, match="written in format 99, this autogaze reads up to"):
        Metadata.from_properties(properties, "gaze.engine")
    del properties["autogaze.format"]
    with pytest.raises(FormatError, match="not an autogaze export"):
        Metadata.from_properties(properties, "gaze.engine")
    with pytest.raises(FormatError, match="lacks group"):
        whole = OPTIONS.metadata(model).to_properties()
        Metadata.from_properties({k: v for k, v in whole.items() if k != "autogaze.group"}, "gaze.engine")


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    with pytest.raises(FileNotFoundError, match=r"gone\.onnx"):
        Engine.load(tmp_path / "gone.onnx")
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(FormatError, match=r"expected a file in \.engine, \.onnx"):
        Engine.load(tmp_path / "model.safetensors")
    model = AutoGaze(SMALL)
    whole = write_graph(model, OPTIONS.metadata(model)).SerializeToString()
    for name, data in {"text.onnx": b"not protobuf", "cut.onnx": whole[: len(whole) // 2], "empty.onnx": b""}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(FormatError, match=f"{name}: (ONNX Runtime cannot read it|not an autogaze export)"):
            Engine.load(tmp_path / name, "cpu")
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "other", value[:1], value[1:])
    graph = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(graph, tmp_path / "other.onnx")
    with pytest.raises(FormatError, match="not an autogaze export"):
        Engine.load(tmp_path / "other.onnx", "cpu")


def test_an_engine_names_the_runtime_that_it_needs(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(ImportError, match=r"this engine needs tensorrt: pip install tensorrt==0\.0"):
        Engine.load(fake)


def test_without_tensorrt_one_line_names_what_to_install(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from autogaze.cli.main import main

    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["export", str(tiny_checkpoint), "--trt", str(tmp_path / "gaze.engine")]) == 2
    words = capsys.readouterr().err.strip()
    assert words.startswith("autogaze: TensorRT is not installed: for data-centre GPUs pip install tensorrt, for RTX")
    assert not list(tmp_path.iterdir())


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="hardware must be one of"):
        BuildOptions(hardware="all")
    with pytest.raises(ValueError, match="workspace must be positive"):
        BuildOptions(workspace_mib=0)


def test_rtx_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt_rtx")
    for options in (BuildOptions(version_compatible=True), BuildOptions(timing_cache=tmp_path / "cache")):
        with pytest.raises(ValueError, match="every RTX GPU from Ampere on"):
            EngineBuilder(trt, options)


@pytest.mark.parametrize("stale", [False, True])
def test_timings_of_another_gpu_are_left_out(stale: bool, tmp_path: Path) -> None:
    """As the tensorrt package does it: a cache that does not fit can't be set."""
    path = tmp_path / "timings"
    path.write_bytes(b"old")
    given: list[bytes] = []

    class Config:
        def create_timing_cache(self, data: bytes) -> bytes:
            return data

        def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
            given.append(cache)
            return not (stale and cache)

        def get_timing_cache(self) -> SimpleNamespace | None:
            return None if stale else SimpleNamespace(serialize=lambda: b"new")

    builder = EngineBuilder.__new__(EngineBuilder)  # the package itself needs a GPU
    builder.log, builder.trt = [], SimpleNamespace(__name__="tensorrt", __version__="10.9")
    builder._use_timings(Config(), path)
    builder._keep_timings(Config(), path)
    assert given == ([b"old", b""] if stale else [b"old"])
    assert path.read_bytes() == (b"old" if stale else b"new")
    assert len(builder.log) == (2 if stale else 0)


def assert_nothing_fell_back(log: Sequence[str]) -> None:
    """Beside the reminder that ids are int64, a build has nothing to say."""
    assert not [line for line in log if "Int64 binding" not in line]


def test_the_log_keeps_what_tells_of_fallbacks() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt_rtx")
    builder = EngineBuilder(trt, BuildOptions())
    for severity, line in ((trt.ILogger.VERBOSE, "Layer x: Fallback to y"), (trt.ILogger.VERBOSE, "all is well")):
        builder.logger.log(severity, line)
    builder.logger.log(trt.ILogger.WARNING, "mind this")
    assert builder.log == ["Layer x: Fallback to y", "mind this"]
    with pytest.raises(AssertionError):
        assert_nothing_fell_back(builder.log)


@pytest.mark.parametrize("residual_map", [False, True])
def test_a_tiny_engine_builds_and_reads_back(
    residual_map: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from autogaze.cli.main import main

    try:
        trt = find_tensorrt()
    except ImportError as error:
        pytest.skip(str(error))
    if trt.__name__ == "tensorrt" and not torch.cuda.is_available():
        pytest.skip("the tensorrt package builds on a GPU only")
    phases: list[str] = []
    config = replace(AutoGazeConfig.tiny(), residual_map=residual_map)
    model, path = AutoGaze(config), tmp_path / "gaze.engine"
    report = export_tensorrt(model, path, OPTIONS, BuildOptions(workspace_mib=512), phases.append)
    assert phases and report.layers > 500
    assert_nothing_fell_back(report.log)
    file = read_engine(path)
    assert len(file.plan) == report.bytes and file.facts.version == trt.__version__
    assert file.metadata == OPTIONS.metadata(model)
    assert (file.facts.inputs, file.facts.outputs) == (
        input_specs(model, file.metadata), output_specs(model, file.metadata))  # fmt: skip
    for spec in (*file.facts.inputs, *file.facts.outputs):
        assert spec.name.encode() in file.plan
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="needs a CUDA GPU"):
            Engine.load(path)
    assert main(["info", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["runtime"] == f"{trt.__name__} {trt.__version__}"
    assert facts["inputs"]["frame"] == ["batch", 3, 224, 224]
    assert facts["metadata_autogaze.budget"] == "79"


@pytest.mark.parametrize(
    "precision", [pytest.param("fp32", marks=pytest.mark.slow), "fp16", pytest.param("bf16", marks=pytest.mark.slow)]
)
def test_an_engine_of_base_size_builds(precision: str, tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt_rtx")
    model = AutoGaze(AutoGazeConfig.base())
    metadata = ExportOptions(precision=precision, gazing_ratio=0.1, batch=(1, 4)).metadata(model)
    builder = EngineBuilder(trt, BuildOptions())
    plan, layers = builder.build(write_graph(model, metadata).SerializeToString(), metadata)
    assert len(plan) > 5_000_000 and layers > 1000
    assert builder.specs(model, metadata) == (input_specs(model, metadata), output_specs(model, metadata))
    assert_nothing_fell_back(builder.log)


def test_the_footer_is_the_documented_one(fake: Path) -> None:
    data = fake.read_bytes()
    assert FOOTER.size == 28 and data.endswith(b"AUTOGAZE")
    assert int.from_bytes(data[-28:-20], "little") == 400  # bytes of the plan


def test_running_a_file_needs_no_onnx(model: AutoGaze, tmp_path: Path) -> None:
    import subprocess

    import onnx

    onnx.save(write_graph(model, ExportOptions(gazing_ratio=0.1).metadata(model)), tmp_path / "gaze.onnx")
    code = ("import sys; sys.modules['onnx'] = None; import torch; from autogaze.export import Engine\n"
            "engine = Engine.load(sys.argv[1], 'cpu', threads=1)\n"
            "print(engine.generate(torch.randn(1, 1, 3, 64, 64)).ids.shape)")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "gaze.onnx")], capture_output=True, text=True)
    assert done.stdout.strip() == "torch.Size([1, 1, 2])", done.stderr


def test_whatever_the_numbers_of_a_file_say_it_is_read_or_refused(model: AutoGaze, tmp_path: Path) -> None:
    """Whole by its checksum, and changed at random: no other error, no endless work."""
    metadata, random = OPTIONS.metadata(model), Random(0)
    specs, path = (input_specs(model, metadata), output_specs(model, metadata)), tmp_path / "odd.engine"
    write_engine(path, b"plan", metadata, EngineFacts("tensorrt", "0.0", "sm_00", False, *specs))
    whole, refused = path.read_bytes()[4 : -FOOTER.size], 0
    for _ in range(400):
        text = bytearray(whole)
        for _ in range(random.randrange(1, 4)):
            at = random.randrange(len(text))
            new = bytes(random.choices(b"0123456789,;:x=-+\n\xff", k=random.randrange(4)))
            text[at : at + random.choice((0, 1, 9))] = new
        path.write_bytes(b"plan" + text + FOOTER.pack(4, len(text), zlib.crc32(b"plan" + text), b"AUTOGAZE"))
        try:
            file = read_engine(path)
            check_specs(file.metadata, file.facts.inputs, file.facts.outputs, "odd.engine")
        except FormatError as error:
            refused += "odd.engine" in str(error)
    assert refused > 300
