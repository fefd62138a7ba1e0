"""The benchmark runs at toy size, and its opponent computes what it claims to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("timm")

from autogaze import AutoGaze, Gaze, PatchGrid  # noqa: E402
from autogaze.vit import GazedViT  # noqa: E402
from benchmarks.vit import main, make_vit  # noqa: E402
from benchmarks.vit_opponents import dense_joint, published, published_decode_ms  # noqa: E402


def _case(attention: str) -> tuple[torch.nn.Module, torch.Tensor, Gaze, torch.Tensor]:
    vit, grid = make_vit("vit_base_patch16_siglip_224", 64, quick=True).eval(), PatchGrid((16, 32, 64), 16)
    gaze = Gaze.from_patch_mask(torch.rand(2, 3, grid.patches_per_frame) < 0.4, grid)
    video = torch.randn(2, 3, 3, 64, 64)
    return vit, video, gaze, GazedViT(vit, attention)(video, gaze).features


@torch.no_grad()
@pytest.mark.parametrize("attention", ["frame", "block_causal", "joint"])
def test_the_published_way_gives_our_features(attention: str) -> None:
    vit, video, gaze, ours = _case(attention)
    assert torch.allclose(published(vit, video, gaze, attention)()[gaze.chosen.flatten(1)], ours, atol=1e-5)


@torch.no_grad()
def test_the_dense_joint_way_gives_our_features_of_whole_frames() -> None:
    vit, video, gaze, _ = _case("joint")
    mask = torch.zeros(2, 3, gaze.grid.patches_per_frame, dtype=torch.bool)
    mask[..., gaze.grid.offsets[-1] :] = True
    whole = Gaze.from_patch_mask(mask, gaze.grid)
    for capacity in (None, whole.ids.numel()):  # runs known to be regular, and runs of any length
        ours = GazedViT(vit, "joint")(video, whole, capacity).features
        assert torch.allclose(dense_joint(vit, video)().flatten(0, 1), ours, atol=1e-5)


def test_published_times_are_the_measured_ones() -> None:
    assert published_decode_ms(1, 0.1) == 281.0
    assert published_decode_ms(64, 0.1) == pytest.approx(64 * 5.84)
    assert published_decode_ms(512, 0.1) == pytest.approx(512 * 2.80)
    assert 8 * 39.2 < published_decode_ms(20, 0.1) < 64 * 5.84 * 2
    assert published_decode_ms(1, 0.05) == pytest.approx(281.0 * 3 / 4)


def test_a_quick_run_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick", "--case", "joint", "--runs", "1", "--out", str(tmp_path / "vit.json")]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "vit.json").read_text())
    case = printed["cases"][0]
    assert case["tokens"] < case["dense_tokens"] and case["ours"]["total"]["median_ms"] > 0
    assert printed["torch"] == torch.__version__ and printed["quick"]


def test_the_stride_of_a_case_in_tiles_can_be_changed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: set[int] = set()
    generate = AutoGaze.generate

    def watched(*args: Any, gaze_stride: int = 1, **options: Any) -> Gaze:
        looked.add(gaze_stride)
        return generate(*args, gaze_stride=gaze_stride, **options)

    monkeypatch.setattr(AutoGaze, "generate", watched)
    for arguments, stride in (([], 2), (["--gaze-stride", "1"], 1)):
        looked.clear()
        assert main(["--quick", "--case", "so400m-1", "joint", "--runs", "1", *arguments]) == 0
        tiled, joint = json.loads(capsys.readouterr().out)["cases"]
        assert tiled["gaze_stride"] == stride and joint["gaze_stride"] == 1 and looked == {1, stride}


def test_toy_measurements_are_not_shipped(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick", "--parts", "--ship"]) == 2
    assert "not for shipping" in capsys.readouterr().err
