"""Exported ONNX files choose what PyTorch chooses, in every form, and are refused where they would not."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from autogaze.media.preprocess import Preprocessor
from autogaze.model import AutoGaze, AutoGazeConfig

onnx = pytest.importorskip("onnx", reason="needs the export extra: onnx")
pytest.importorskip("onnxruntime", reason="needs the export extra: onnxruntime")

from autogaze.core.gaze import Gaze  # noqa: E402
from autogaze.decoding.clip import decode_clip  # noqa: E402
from autogaze.decoding.request import make_request  # noqa: E402
from autogaze.export.forms import input_specs, write_graph  # noqa: E402
from autogaze.export.metadata import FORMAT, FormatError  # noqa: E402
from autogaze.export.onnx import ExportOptions, check_graph, export_onnx, float32_twin  # noqa: E402
from autogaze.export.parity import ParityError, compare, scenes  # noqa: E402
from autogaze.export.runner import Engine  # noqa: E402
from autogaze.export.tensors import state_of  # noqa: E402

SMALL = AutoGazeConfig(
    scales=(16, 32, 64),
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=3,
    head_dim=16,
    intermediate_size=96,
    num_multi_token_pred=4,
    max_num_frames=5,
    encoder_depth=2,
    gazing_ratio=0.5,
    task_loss_requirement=None,
)


def sharp(config: AutoGazeConfig, factor: float = 3.0) -> AutoGaze:
    """A random model whose best id wins clearly."""
    torch.manual_seed(0)
    model = AutoGaze(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name and "bias" not in name and not name.startswith("residual_map."):
                parameter *= factor
    return model


def clips(batch: int, frames: int) -> Tensor:
    """Blocks of 8 pixels that drift, under noise: scales differ in what they take away, and places in what is left."""
    generator = torch.Generator().manual_seed(batch + frames)
    blocks = 0.4 * torch.randn(batch, frames, 3, 8, 8, generator=generator).cumsum(dim=1)
    return blocks.repeat_interleave(8, -1).repeat_interleave(8, -2) + 0.2 * torch.randn(
        batch, frames, 3, 64, 64, generator=generator
    )


@pytest.fixture(scope="module", params=[False, True], ids=["published", "ours"])
def small(request: pytest.FixtureRequest) -> AutoGaze:
    """As published, and with the error of what is known."""
    return sharp(replace(SMALL, residual_map=request.param))


@pytest.fixture(scope="module")
def frame_file(small: AutoGaze, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "frame.onnx"
    export_onnx(small, path, ExportOptions(gazing_ratio=0.9, batch=(1, 4)))
    return path


@pytest.fixture(scope="module")
def clip_file(small: AutoGaze, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "clip.onnx"
    export_onnx(small, path, ExportOptions(clip=True, gazing_ratio=0.5, batch=(1, 4)))
    return path


def requirement(model: AutoGaze, video: Tensor, quantile: float = 0.15) -> float:
    """A requirement that some frames meet."""
    free = model.generate(video, 0.9)
    assert free.task_loss is not None
    return float(free.task_loss[free.chosen].quantile(quantile))


def alone(model: AutoGaze, video: Tensor, ratio: Any, needed: Any) -> Gaze:
    """The gaze of every clip by itself."""
    width, gazes = 0, []
    for i in range(len(video)):
        parts = (value[i : i + 1] if isinstance(value, Tensor) else value for value in (ratio, needed))
        gazes.append(model.generate(video[i : i + 1], *parts))
        width = max(width, gazes[-1].ids.shape[2])
    fills = (0, False, float("nan"))
    ids, chosen, loss = (
        torch.cat([F.pad(part, (0, width - part.shape[-1]), value=fill) for part in parts])
        for parts, fill in zip(zip(*((g.ids, g.chosen, g.task_loss) for g in gazes), strict=True), fills, strict=True)
    )
    return Gaze(ids, chosen, model.grid, loss)


def assert_same(expected: Gaze, got: Gaze) -> None:
    width = expected.ids.shape[2]
    assert not got.chosen[..., width:].any()
    torch.testing.assert_close(got.chosen[..., :width], expected.chosen)
    assert torch.equal(got.ids[..., :width].where(expected.chosen, 0), expected.ids.where(expected.chosen, 0))
    assert expected.task_loss is not None and got.task_loss is not None
    torch.testing.assert_close(got.task_loss[..., :width], expected.task_loss, atol=1e-4, rtol=0, equal_nan=True)


def test_a_frame_file_equals_generate_past_the_window(small: AutoGaze, frame_file: Path) -> None:
    video = clips(3, 12)  # the model remembers 5 frames
    assert_same(small.generate(video, 0.9), Engine.load(frame_file, "cpu", threads=1).generate(video, 0.9))


@pytest.mark.parametrize("asked", ["alike", "each its own"])
def test_stop_rule_and_budgets_equal_generate(small: AutoGaze, frame_file: Path, asked: str) -> None:
    video = clips(3, 8)
    ratio = torch.full((3, 8), 0.9, dtype=torch.float64)
    if asked == "each its own":
        ratio[1, 2:5], ratio[0, 1] = 0.05, 0.0
    needed = torch.full((3, 8), requirement(small, video))
    expected = alone(small, video, ratio, needed)
    assert 0 < int(expected.counts.sum()) < 3 * 8 * 18  # the rule stopped some frames
    assert_same(expected, Engine.load(frame_file, "cpu", threads=1).generate(video, ratio, needed))


def test_what_is_wrong_matters_to_these_models() -> None:
    """Otherwise the tests here would say nothing of them."""
    model, video = sharp(replace(SMALL, residual_map=True)), clips(2, 5)
    assert model.residual_map is not None
    gaze = model.generate(video, 0.3)
    for weight in model.residual_map.parameters():
        with torch.no_grad():
            kept = weight.clone()
            weight.zero_()
            assert not torch.equal(model.generate(video, 0.3).ids, gaze.ids)
            weight.copy_(kept)
    later = model.generate(video[:, 1:], 0.3)  # which begins without what the first frame left
    assert gaze.task_loss is not None and later.task_loss is not None
    assert bool((later.task_loss[:, 0, 0] > gaze.task_loss[:, 1, 0] + 0.05).all())


def test_scales_that_look_equally_sharp_and_a_weight_below_zero_equal_generate(tmp_path: Path) -> None:
    """Scales 48 and 64 both leave every pixel, and a weight below zero counts as none."""
    model, video = sharp(replace(SMALL, scales=(16, 48, 64), residual_map=True)), clips(2, 3)
    assert model.residual_map is not None and model.residual_map.blocks == (4, 1, 1)
    model.residual_map.weight.data[1] = -0.5
    export_onnx(model, tmp_path / "gaze.onnx", ExportOptions(gazing_ratio=0.9))
    assert_same(model.generate(video, 0.9), Engine.load(tmp_path / "gaze.onnx", "cpu", threads=1).generate(video, 0.9))


def test_a_grid_of_one_scale_equals_generate(tmp_path: Path) -> None:
    model, video = sharp(replace(SMALL, scales=(64,), residual_map=True)), clips(2, 3)
    export_onnx(model, tmp_path / "gaze.onnx", ExportOptions(gazing_ratio=0.9))
    assert_same(model.generate(video, 0.9), Engine.load(tmp_path / "gaze.onnx", "cpu", threads=1).generate(video, 0.9))


@pytest.mark.parametrize("residual", [False, True])
def test_a_stream_remembers_a_canvas_if_the_model_has_a_residual_map(residual: bool) -> None:
    model = AutoGaze(replace(SMALL, residual_map=residual))
    frame, clip = (ExportOptions(clip=clip, gazing_ratio=0.3).metadata(model) for clip in (False, True))
    assert frame.format == clip.format == FORMAT
    names = [spec.name for spec in state_of(input_specs(model, frame))]
    assert names == ["conv", "keys", "values", "positions", "last_ids", *["canvas"] * residual]
    assert not state_of(input_specs(model, clip))


def test_a_clip_is_decoded_as_if_alone(small: AutoGaze, frame_file: Path, clip_file: Path) -> None:
    """In any batch, beside any request."""
    video, engines = clips(3, 5), [Engine.load(path, "cpu", threads=1) for path in (frame_file, clip_file)]
    needed = requirement(small, video)
    ratio = torch.tensor([0.5, 0.2, 0.5], dtype=torch.float64)[:, None].expand(3, 5)
    for engine in engines:
        alone = [engine.generate(video[i : i + 1], 0.5, needed) for i in range(3)]
        assert_same(small.generate(video[:1], 0.5, needed), alone[0])
        together, beside = engine.generate(video, 0.5, needed), engine.generate(video, ratio, needed)
        for i in range(3):
            assert_same(alone[i], together[i : i + 1])
        for i in (0, 2):
            assert_same(alone[i], beside[i : i + 1])


@pytest.mark.parametrize("kind", ["frame", "clip"])
def test_files_of_formats_before_3_are_read(
    kind: str, small: AutoGaze, frame_file: Path, clip_file: Path, tmp_path: Path
) -> None:
    """They have the input `in_step`, which is always false here, and no `allowed_scales`."""
    path, frames = (frame_file, []) if kind == "frame" else (clip_file, [5])
    graph = onnx.load(path)
    shape = ["batch", *frames]
    graph.graph.input.insert(3, onnx.helper.make_tensor_value_info("in_step", onnx.TensorProto.BOOL, shape))
    former = {entry.key: entry.value for entry in graph.metadata_props} | {"autogaze.format": "2"}
    del graph.metadata_props[:], former["autogaze.allowed_scales"]
    onnx.helper.set_model_props(graph, former)
    onnx.save(graph, tmp_path / "former.onnx")
    video = clips(2, 5)
    engine = Engine.load(tmp_path / "former.onnx", "cpu", threads=1)
    assert_same(Engine.load(path, "cpu", threads=1).generate(video, 0.5), engine.generate(video, 0.5))


def test_only_ids_of_the_chosen_scales_are_taken(small: AutoGaze, tmp_path: Path) -> None:
    """Some scales: no other id is chosen, none twice, and the budget ends where there is nothing left to choose."""
    for clip in (False, True):
        metadata = ExportOptions(gazing_ratio=0.9, scales=(64, 16), clip=clip, frames=3 if clip else None).metadata(
            small
        )
        assert (metadata.allowed_scales, metadata.budget) == ((16, 64), 17)
        onnx.save(write_graph(small, metadata), tmp_path / "gaze.onnx")
        engine = Engine.load(tmp_path / "gaze.onnx", "cpu", threads=1)
        video = clips(2, 3)
        gaze = engine.generate(video, 1.0)
        request = make_request(small.grid, 2, 3, 1.0, scales=(16, 64))
        assert_same(decode_clip(small, video, request), gaze)
        assert compare(small, engine, scenes(metadata, 2, 3)).share == 1.0  # what an export is kept by
        assert gaze.chosen.all() and not ((gaze.ids > 0) & (gaze.ids < 5)).any()  # ids 1 to 4 are of scale 32
        assert all(len(set(frame)) == 17 for frame in gaze.ids.flatten(0, 1).tolist())
    with pytest.raises(ValueError, match=r"scales must be some of the model's \(16, 32, 64\) \(pixels\), got \(48,\)"):
        ExportOptions(scales=(48,)).metadata(small)
    with pytest.raises(ValueError, match="scales must be some of"):
        ExportOptions(scales=()).metadata(small)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("budget", "17", "outputs chosen, ids, task_loss"),
        ("input_size", "64,65", "inputs frame are not"),
        ("pixels", "uint8", "inputs frame are not"),
        ("kind", "clip", "inputs budget, frame, frames, requirement"),
        ("scales", "16+32+48", "is not what|are not what|damaged metadata"),
        ("patch_size", "0", "damaged metadata"),
        ("scales", "16+32+2000000000", "damaged metadata .a size is above"),
        ("budget", "22", "damaged metadata"),
        ("std", "nan,1.0,1.0", "damaged metadata"),
        ("gazing_ratio", "nan", "damaged metadata"),
        ("resample", "nearest", "damaged metadata"),
    ],
)
def test_metadata_that_does_not_fit_the_tensors_is_refused(
    key: str, value: str, message: str, frame_file: Path, tmp_path: Path
) -> None:
    graph = onnx.load(frame_file)
    changed = {entry.key: entry.value for entry in graph.metadata_props} | {f"autogaze.{key}": value}
    del graph.metadata_props[:]
    onnx.helper.set_model_props(graph, changed)
    onnx.save(graph, tmp_path / "odd.onnx")
    with pytest.raises(FormatError, match=message):
        Engine.load(tmp_path / "odd.onnx", "cpu", threads=1)


def test_a_clip_file_equals_generate(small: AutoGaze, clip_file: Path) -> None:
    engine = Engine.load(clip_file, "cpu", threads=1)
    video = clips(2, 5)
    needed = requirement(small, video)
    assert_same(alone(small, video, 0.5, needed), engine.generate(video, 0.5, needed))
    assert_same(small.generate(video[:, :3], 0.5), engine.generate(video[:, :3], 0.5))
    with pytest.raises(ValueError, match="up to 5 frames, got 6"):
        engine.generate(torch.randn(1, 6, 3, 64, 64), 0.5)
    with pytest.raises(ValueError, match="without --clip"):
        engine.stream()


def test_streaming_equals_the_models_stream(small: AutoGaze, frame_file: Path) -> None:
    video = clips(2, 7)
    needed = requirement(small, video)
    theirs = [small.stream(0.5, needed) for _ in range(2)]
    ours = Engine.load(frame_file, "cpu", threads=1).stream(0.5, needed, batch=2)
    for _ in range(2):
        for t in range(7):
            both = ours.step(video[:, t])
            for i, stream in enumerate(theirs):
                assert_same(stream.step(video[i : i + 1, t]), both[i : i + 1])
        for stream in (*theirs, ours):
            stream.reset()


def test_a_calibrated_requirement_is_applied_inside(small: AutoGaze, tmp_path: Path) -> None:
    video = clips(2, 3)
    threshold = requirement(small, video)
    model = sharp(small.config).with_calibration(
        ((0.1, threshold - 1.0), (0.2, threshold - 1.0), (0.6, threshold), (0.9, threshold + 0.5))
    )
    export_onnx(model, tmp_path / "gaze.onnx", ExportOptions(gazing_ratio=0.9, batch=(1, 2)))
    engine = Engine.load(tmp_path / "gaze.onnx", "cpu", threads=1)
    for asked in (0.6, 0.05, 0.15, 0.75, 2.0):
        assert_same(alone(model, video, 0.9, asked), engine.generate(video, 0.9, asked))
    assert model.generate(video, 0.9, 0.6).counts.sum() < model.generate(video, 0.9).counts.sum()


def test_uint8_frames_are_resized_and_normalised_inside(small: AutoGaze, tmp_path: Path) -> None:
    model = sharp(small.config)
    model.preprocessor = Preprocessor((64, 64), (0.1, 0.0, -0.1), (0.9, 1.0, 1.1))
    export_onnx(model, tmp_path / "gaze.onnx", ExportOptions(gazing_ratio=0.3, batch=(2, 2), input_size=(90, 131)))
    engine = Engine.load(tmp_path / "gaze.onnx", "cpu", threads=1)
    clips = scenes(engine.metadata, 2, 3)
    assert_same(model.generate(model.preprocessor(clips), 0.3), engine.generate(clips.numpy(), 0.3))
    with pytest.raises(ValueError, match=r"uint8 \(B, T, 90, 131, 3\)"):
        engine.generate(clips[:, :, :80], 0.3)


def test_fp16_and_bf16_agree_to_rounding(small: AutoGaze, tmp_path: Path) -> None:
    for precision in ("fp16", "bf16"):
        report = export_onnx(small, tmp_path / "gaze.onnx", ExportOptions(precision=precision, gazing_ratio=0.3))
        assert all(parity.share > 0.5 for parity in report.parity.values())
        graph = onnx.load(tmp_path / "gaze.onnx")
        kind = onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.BFLOAT16
        keys = next(value for value in graph.graph.input if value.name == "keys")
        assert keys.type.tensor_type.elem_type == kind


def test_the_float32_twin_of_a_bf16_graph_has_the_same_nodes(small: AutoGaze) -> None:
    graph = write_graph(small, ExportOptions(precision="bf16").metadata(small))
    twin = float32_twin(graph)
    assert [node.op_type for node in twin.graph.node] == [node.op_type for node in graph.graph.node]
    ours, theirs = (next(t for t in g.graph.initializer if list(t.dims) == [48, 5 * 48]) for g in (graph, twin))
    half = torch.frombuffer(bytearray(ours.raw_data), dtype=torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(half, np.frombuffer(theirs.raw_data, np.float32))


def test_running_leaves_the_callers_denormals_as_they_are(frame_file: Path) -> None:
    """They are flushed while a file runs, for speed, and that is of the thread."""
    engine, video = Engine.load(frame_file, "cpu", threads=1), torch.randn(1, 2, 3, 64, 64)
    for flushed in (False, True):
        torch.set_flush_denormal(flushed)
        try:
            engine.generate(video, 0.3)
            assert bool(torch.tensor([1e-39]).mul(1.0) == 0) == flushed
        finally:
            torch.set_flush_denormal(False)


def test_inputs_may_be_numpy_torch_or_dlpack(small: AutoGaze, frame_file: Path) -> None:
    engine, video = Engine.load(frame_file, "cpu", threads=1), torch.randn(1, 2, 3, 64, 64)

    class Foreign:
        def __dlpack__(self, **options: object) -> object:
            return video.__dlpack__(**options)

        def __dlpack_device__(self) -> object:
            return video.__dlpack_device__()

    expected = engine.generate(video, 0.3)
    for other in (video.numpy(), Foreign()):
        assert torch.equal(engine.generate(other, 0.3).ids, expected.ids)
    assert np.from_dlpack(expected.ids).shape == expected.ids.shape
    with pytest.raises(ValueError, match="got list"):
        engine.generate([1, 2], 0.3)


def test_input_that_does_not_fit_is_named(frame_file: Path) -> None:
    engine, video = Engine.load(frame_file, "cpu", threads=1), torch.randn(1, 2, 3, 64, 64)
    for wrong, message in (
        (video[0], r"expected float \(B, T, 3, 64, 64\), got torch.float32 \(2, 3, 64, 64\)$"),
        (video[..., :60], r"got torch.float32 \(1, 2, 3, 64, 60\); for frames of another size export with --uint8 HxW"),
        (video.int(), r"expected float .* got torch.int32 \(1, 2, 3, 64, 64\)$"),
        (video[:0], r"got torch.float32 \(0, 2, 3, 64, 64\)"),
        (video.permute(0, 1, 3, 4, 2), r"got torch.float32 \(1, 2, 64, 64, 3\)$"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.generate(wrong, 0.3)
    with pytest.raises(ValueError, match="this stream takes 2 frames side by side, got 1"):
        engine.stream(batch=2).step(video[:, 0])
    with pytest.raises(ValueError, match="spends at most 18 of 21 ids a frame .* asked for 21"):
        engine.generate(video, 1.0)
    assert torch.equal(engine.generate(video.double(), 0.3).ids, engine.generate(video, 0.3).ids)
    mirrored = video.numpy()[..., ::-1]  # neither contiguous nor of positive strides
    assert torch.equal(engine.generate(mirrored, 0.3).ids, engine.generate(video.flip(-1), 0.3).ids)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"device": "gpu"}, "device must be like cpu, cuda or cuda:1, got 'gpu'"),
        ({"device": "mps"}, "runs on cpu or cuda here, got mps"),
        ({"device": "cpu", "cuda_graph": True}, "a CUDA graph or stream needs a CUDA device, got cpu"),
        ({"device": "cpu", "stream": 1234}, "a CUDA graph or stream needs a CUDA device, got cpu"),
        ({"device": "cpu", "threads": 0}, "threads must be at least 1, got 0"),
    ],
)
def test_a_device_that_does_not_fit_is_named(frame_file: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Engine.load(frame_file, **options)


def test_a_session_goes_with_the_last_that_uses_it(frame_file: Path) -> None:
    """At once: collected as garbage, it might free GPU memory while something else is captured in a CUDA graph."""
    engine = Engine.load(frame_file, "cpu")
    frame = np.zeros((1, 3, *engine.metadata.input_size), np.float32)
    engine.generate(frame[None])
    stream, session = engine.stream(), weakref.ref(engine.session)
    del engine
    assert stream.step(frame).chosen.all()
    del stream
    assert session() is None


def test_several_engines_share_a_process(small: AutoGaze, frame_file: Path, clip_file: Path) -> None:
    video = clips(2, 4)
    expected = small.generate(video, 0.5)
    first, second, whole = (Engine.load(path, "cpu", threads=1) for path in (frame_file, frame_file, clip_file))
    one, two = first.stream(0.5, batch=2), second.stream(0.5, batch=2)
    for t in range(4):
        for stream in (one, two):
            assert_same(expected[:, t : t + 1], stream.step(video[:, t]))
        assert_same(expected[:, : t + 1], whole.generate(video[:, : t + 1], 0.5))
        assert_same(expected[:, : t + 1], first.generate(video[:, : t + 1], 0.5))


def test_batches_are_split_and_padded_to_what_the_file_takes(small: AutoGaze, tmp_path: Path) -> None:
    export_onnx(small, tmp_path / "gaze.onnx", ExportOptions(gazing_ratio=0.3, batch=(2, 2)))
    engine = Engine.load(tmp_path / "gaze.onnx", "cpu", threads=1)
    video = clips(3, 2)
    assert_same(small.generate(video, 0.3), engine.generate(video, 0.3))
    with pytest.raises(ValueError, match="2 to 2 streams"):
        engine.stream(batch=1)


@pytest.mark.parametrize("config, most, an_id", [(AutoGazeConfig(), 850, 4), (AutoGazeConfig.base(), 1300, 16)])
def test_the_graph_is_lean_and_has_no_control_flow(config: AutoGazeConfig, most: int, an_id: int) -> None:
    """An id of the budget costs a few nodes, its group those of a pass."""
    model = AutoGaze(config)
    options = ExportOptions(gazing_ratio=0.1)  # 26 ids: 3 groups
    graph = write_graph(model, options.metadata(model))
    assert len(graph.graph.node) < most
    assert sum("Tile" in node.op_type for node in graph.graph.node) <= 1
    of_a_group = [node for node in graph.graph.node if node.name.startswith("group1/") and "layer" not in node.name]
    assert len(of_a_group) < config.num_multi_token_pred * an_id + 20
    assert not {"Loop", "If", "Scan", "NonZero"} & {node.op_type for node in graph.graph.node}
    check_graph(graph, model, options.metadata(model))


def test_a_file_that_chooses_otherwise_is_not_kept(
    small: AutoGaze, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = sharp(small.config, 2.5)
    if other.residual_map is not None:  # which would choose alike whatever the heads say
        other.residual_map.strength.data.zero_()
    engine = Engine.load(_export(small, tmp_path / "good.onnx"), "cpu", threads=1)
    with pytest.raises(ParityError, match="part at frame|predicted-loss"):
        compare(other, engine, scenes(engine.metadata, 2, 2))
    monkeypatch.setattr("autogaze.export.onnx.write_graph", lambda model, metadata: write_graph(other, metadata))
    with pytest.raises(ParityError):
        export_onnx(small, tmp_path / "bad.onnx", ExportOptions(gazing_ratio=0.3))
    assert [path.name for path in tmp_path.iterdir()] == ["good.onnx"]


def test_the_published_recordings_are_reproduced(shared: Path, tmp_path: Path) -> None:
    """Cases of ../shared/compat/tiny through an exported file."""
    import json

    from safetensors.torch import load_file

    folder = shared / "compat" / "tiny"
    model = AutoGaze.from_pretrained(folder / "model")
    cases, tensors = json.loads((folder / "cases.json").read_text())["cases"], load_file(folder / "cases.safetensors")
    export_onnx(model, tmp_path / "gaze.onnx", ExportOptions(gazing_ratio=0.5))
    engine = Engine.load(tmp_path / "gaze.onnx", "cpu", threads=1)
    for name in ("ratio",):  # "threshold" and "streaming" depend on the published batching, which is left out
        case = cases[name]
        gaze = engine.generate(tensors["video"], case["gazing_ratio"], case.get("task_loss_requirement"))
        info, kept = gaze.to_gazing_info(), ~tensors[f"{name}.if_padded_gazing"].bool()
        assert torch.equal(~info["if_padded_gazing"], kept), name
        assert torch.equal(info["gazing_pos"].where(kept, 0), tensors[f"{name}.gazing_pos"].where(kept, 0)), name


def _export(model: AutoGaze, path: Path) -> Path:
    export_onnx(model, path, ExportOptions(gazing_ratio=0.3))
    return path
