"""Metadata of a file fits its contents; older formats are read; every sample is decoded as if alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from autogaze.decoding.clip import decode_clip
from autogaze.decoding.request import make_request
from autogaze.model import AutoGaze
from tests.export.models import SMALL, assert_same, clips, requirement

onnx = pytest.importorskip("onnx", reason="needs the export extra: onnx")
pytest.importorskip("onnxruntime", reason="needs the export extra: onnxruntime")

from autogaze.export.graph.forms import input_specs, write_graph  # noqa: E402
from autogaze.export.metadata import FORMAT, FormatError  # noqa: E402
from autogaze.export.onnx import ExportOptions  # noqa: E402
from autogaze.export.parity import compare, scenes  # noqa: E402
from autogaze.export.runner import Engine  # noqa: E402
from autogaze.export.tensors import state_of  # noqa: E402


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
    "damage, message",
    [
        (
            lambda value: setattr(value.type.tensor_type.shape.dim[1], "dim_param", "any"),
            "which is in no export|are not",
        ),
        (lambda value: setattr(value.type.tensor_type, "elem_type", onnx.TensorProto.DOUBLE), "is in no export|cannot"),
        (lambda value: setattr(value, "name", "other"), "cannot read it|are not what"),
    ],
)
def test_tensors_that_no_export_has_are_refused(damage: Any, message: str, frame_file: Path, tmp_path: Path) -> None:
    graph = onnx.load(frame_file)
    for name in ("conv", "next_conv"):
        damage(next(value for value in (*graph.graph.input, *graph.graph.output) if value.name == name))
    onnx.save(graph, tmp_path / "odd.onnx")
    with pytest.raises(FormatError, match=message):
        Engine.load(tmp_path / "odd.onnx", "cpu", threads=1)


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
