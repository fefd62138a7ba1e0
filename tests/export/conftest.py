"""Exported files that several test modules run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from autogaze.model import AutoGaze
from tests.export.models import SMALL, sharp


@pytest.fixture(scope="package", params=[False, True], ids=["published", "ours"])
def small(request: pytest.FixtureRequest) -> AutoGaze:
    """As published, and with the error of what is known."""
    return sharp(replace(SMALL, residual_map=request.param))


@pytest.fixture(scope="package")
def frame_file(small: AutoGaze, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnx", reason="needs the export extra: onnx")
    pytest.importorskip("onnxruntime", reason="needs the export extra: onnxruntime")
    from autogaze.export.onnx import ExportOptions, export_onnx

    path = tmp_path_factory.mktemp("onnx") / "frame.onnx"
    export_onnx(small, path, ExportOptions(gazing_ratio=0.9, batch=(1, 4)))
    return path


@pytest.fixture(scope="package")
def clip_file(small: AutoGaze, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnx", reason="needs the export extra: onnx")
    pytest.importorskip("onnxruntime", reason="needs the export extra: onnxruntime")
    from autogaze.export.onnx import ExportOptions, export_onnx

    path = tmp_path_factory.mktemp("onnx") / "clip.onnx"
    export_onnx(small, path, ExportOptions(clip=True, gazing_ratio=0.5, batch=(1, 4)))
    return path
