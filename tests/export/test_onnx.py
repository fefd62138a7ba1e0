"""Exported ONNX files choose what PyTorch chooses, in every form, and are refused where they would not."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autogaze.media.preprocess import Preprocessor
from autogaze.model import AutoGaze, AutoGazeConfig
from tests.export.models import SMALL, alone, assert_same, clips, requirement, sharp

onnx = pytest.importorskip("onnx", reason="needs the export extra: onnx")
pytest.importorskip("onnxruntime", reason="needs the export extra: onnxruntime")

from autogaze.export.graph.forms import write_graph  # noqa: E402
from autogaze.export.onnx import ExportOptions, check_graph, export_onnx, float32_twin  # noqa: E402
from autogaze.export.parity import ParityError, compare, scenes  # noqa: E402
from autogaze.export.runner import Engine  # noqa: E402


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


@pytest.mark.parametrize("patch, scales", [(8, (8, 64)), (8, (24, 32, 48, 64))])
def test_a_perceptual_map_equals_generate(tmp_path: Path, patch: int, scales: tuple[int, ...]) -> None:
    """A scale that leaves blocks of 8 pixels; and scales that leave the same blocks, with factors of their own."""
    config = replace(SMALL, scales=scales, patch_size=patch, residual_map=True, perceptual=True, residual_blur_px=0.8)
    model = sharp(config)
    video = clips(2, 3)
    export_onnx(model, tmp_path / "gaze.onnx", ExportOptions(gazing_ratio=0.2))
    assert_same(model.generate(video, 0.2), Engine.load(tmp_path / "gaze.onnx", "cpu", threads=1).generate(video, 0.2))


def test_a_grid_of_one_scale_equals_generate(tmp_path: Path) -> None:
    model, video = sharp(replace(SMALL, scales=(64,), residual_map=True)), clips(2, 3)
    export_onnx(model, tmp_path / "gaze.onnx", ExportOptions(gazing_ratio=0.9))
    assert_same(model.generate(video, 0.9), Engine.load(tmp_path / "gaze.onnx", "cpu", threads=1).generate(video, 0.9))


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
    stream, session = engine.stream(None), weakref.ref(engine.session)
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


def test_a_file_has_the_defaults_of_its_model(small: AutoGaze, tmp_path: Path) -> None:
    video = clips(2, 3)
    loss = small.generate(video, small.config.gazing_ratio).task_loss
    assert loss is not None
    model = AutoGaze(replace(small.config, task_loss_requirement=float(loss.nanmedian()))).eval()
    model.load_state_dict(small.state_dict())
    export_onnx(model, tmp_path / "gaze.onnx", ExportOptions())
    engine, own = Engine.load(tmp_path / "gaze.onnx", "cpu", threads=1), model.generate(video)
    assert_same(own, engine.generate(video))
    assert_same(own[:, :1], engine.stream(batch=2).step(video[:, 0]))
    assert int(own.counts.sum()) < int(engine.generate(video, None).counts.sum())


def test_batches_are_split_and_padded_to_what_the_file_takes(small: AutoGaze, tmp_path: Path) -> None:
    export_onnx(small, tmp_path / "gaze.onnx", ExportOptions(gazing_ratio=0.3, batch=(2, 2)))
    engine = Engine.load(tmp_path / "gaze.onnx", "cpu", threads=1)
    video = clips(3, 2)
    assert_same(small.generate(video, 0.3), engine.generate(video, 0.3))
    with pytest.raises(ValueError, match="2 to 2 streams"):
        engine.stream(batch=1)


@pytest.mark.parametrize(
    "config, most, an_id", [(AutoGazeConfig(residual_map=False), 850, 4), (AutoGazeConfig(), 1300, 16)]
)
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


@pytest.mark.filterwarnings("ignore:video has values")
def test_pixels_that_cannot_be_right_are_refused(frame_file: Path) -> None:
    engine, video = Engine.load(frame_file, "cpu", threads=1), clips(1, 2)
    for wrong, message in (
        (video * float("nan"), "NaN or infinite"),
        ((video + 1) * 127, "preprocessed pixels lie in"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.generate(wrong, 0.3)
        with pytest.raises(ValueError, match=message):
            engine.stream(0.3).step(wrong[:, 0])
    assert engine.generate(video, 0.3).counts.all()
