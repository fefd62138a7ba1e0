"""The script that checks TensorRT on somebody's GPU runs, here with ONNX Runtime in its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="needs the export extra: onnx")
pytest.importorskip("onnxruntime", reason="needs the export extra: onnxruntime")

from benchmarks import tensorrt_check  # noqa: E402


def test_the_table_has_ids_and_times(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "trt.json"
    arguments = ["check", "--no-tensorrt", "--quick", "--checkpoint", str(tiny_checkpoint), "--out", str(out)]
    monkeypatch.setattr("sys.argv", arguments)
    assert tensorrt_check.main() == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert row["equal"] / row["slots"] > 0.9 and row["frame"][0]["file"]["median_ms"] > 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("| fp32 | onnxruntime |") and "1: " in line


def test_a_row_that_fails_says_why_and_the_next_follows(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise tensorrt_check.BuildError("no such layer")

    monkeypatch.setattr(tensorrt_check, "build", refuse)
    monkeypatch.setattr("sys.argv", ["check", "--no-tensorrt", "--checkpoint", str(tiny_checkpoint)])
    assert tensorrt_check.main() == 1
    lines = capsys.readouterr().out.splitlines()[-3:]
    assert [line.split("|")[1].strip() for line in lines] == ["fp32", "fp16", "bf16"]
    assert all("failed: BuildError: no such layer" in line for line in lines)
