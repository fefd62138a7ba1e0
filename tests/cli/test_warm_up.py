"""`autogaze warm-up`: one frame in every dtype asked for, or one line that says why not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from autogaze.cli.main import main


def test_it_gazes_at_one_frame_and_says_how(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["warm-up", "--checkpoint", str(tiny_checkpoint), "--device", "cpu", "--dtype", "float32"]) == 0
    assert capsys.readouterr().err.startswith("float32: ")


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["warm-up"]) == 2
    assert "there is no CUDA device to warm up" in capsys.readouterr().err
