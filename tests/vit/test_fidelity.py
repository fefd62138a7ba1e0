"""The fidelity benchmark at a tiny size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

from autogaze.media.scenes import write_scenes  # noqa: E402
from benchmarks import fidelity  # noqa: E402


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a tiny DINOv2 with random weights."""
    folder = tmp_path_factory.mktemp("vit")
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=4
    )
    transformers.Dinov2Model(config).save_pretrained(folder)
    return folder


def test_every_way_is_measured_and_all_patches_are_dense(
    vit: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    write_scenes(tmp_path / "clips", 3, 16)
    out = tmp_path / "fidelity.json"
    words = [str(vit), "--data", str(tmp_path / "clips"), "--split", "", "--out", str(out), "--batch", "2"]
    assert fidelity.main([*words, "--choosers", "random", "--patches", "26", "196", "--device", "cpu"]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert {row["way"] for row in rows} == set(fidelity.WAYS)
    whole = [
        row for row in rows if row["per_frame"] == 196 and row["way"] in ("memory", "memory, even", "frame, finest")
    ]
    assert len(whole) == 3
    for row in whole:
        assert row["clip"] == pytest.approx(1, abs=1e-3) and row["map"] == pytest.approx(1, abs=1e-3)
        assert row["finds"] == 1.0
    memory = next(row for row in rows if row["way"] == "memory" and row["per_frame"] == 26)
    assert memory["patches"] == pytest.approx(26, abs=0.1)
    assert "| random | memory |" in out.with_suffix(".md").read_text()
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"] == len(rows)


def test_votes_leave_the_clip_itself_out() -> None:
    near = torch.tensor([[0.9, 0.8, 0.1, 0.0], [0.8, 0.9, 0.1, 0.0], [0.1, 0.1, 0.9, 0.2], [0.5, 0.1, 0.2, 0.9]])
    assert fidelity.vote(near, ["a", "a", "b", "b"], 1) == 0.75
