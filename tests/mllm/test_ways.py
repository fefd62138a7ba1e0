"""The benchmark of ways to choose units, at a tiny size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers")

from autogaze.media.scenes import write_scenes  # noqa: E402
from autogaze.vit.gazed import GazedViT  # noqa: E402
from benchmarks.mllm_ways import WAYS, Judge, judge_clip, main  # noqa: E402
from tests.mllm.mllm_models import gaze  # noqa: E402

SIDE = 32  # pixels; 4 x 4 units of 8 pixels


def vit() -> transformers.Dinov2Model:
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE, patch_size=4
    )
    return transformers.Dinov2Model(config).eval()


def judge() -> Judge:
    return Judge(GazedViT(vit(), "frame", SIDE).requires_grad_(False))


def test_every_way_spends_as_many_tokens_and_all_units_are_dense(tmp_path: Path) -> None:
    write_scenes(tmp_path / "clips", 1, 8)
    vit().save_pretrained(tmp_path / "vit")
    gaze().save_pretrained(tmp_path / "gaze")
    out = tmp_path / "ways.json"
    words = ["--data", str(tmp_path / "clips"), "--split", "", "--gaze", str(tmp_path / "gaze"), "--device", "cpu"]
    sizes = ["--size", str(SIDE), "--steps", "4", "--ratios", "0.25", "1.0"]
    assert main([str(tmp_path / "vit"), *words, *sizes, "--out", str(out)]) == 0
    rows = {(row["way"], row["gazing_ratio"]): row for row in json.loads(out.read_text())["rows"]}
    assert {way for way, _ in rows} == set(WAYS)
    for way in WAYS:
        assert 28 - 4 < rows[way, 0.25]["tokens"] <= 16 + 3 * 4  # at most a unit a step is lost by rounding
        if not way.startswith("context"):
            assert rows[way, 1.0]["tokens"] == 64 and rows[way, 1.0]["held"]["value"] == pytest.approx(0, abs=1e-6)
            assert rows[way, 0.25]["held"]["value"] > 1e-4
    assert "| 0.25 | finest |" in out.with_suffix(".md").read_text()


def test_a_place_is_judged_by_the_token_that_was_kept_there_last() -> None:
    still = torch.randn(1, 1, 3, SIDE, SIDE)
    video = torch.cat([still, still, torch.randn(1, 1, 3, SIDE, SIDE)], 1)
    whole = torch.ones(3, 16, dtype=torch.bool)
    dense = judge().tokens(video, whole)
    first = whole & (torch.arange(3) == 0)[:, None]
    held, after, kept = judge_clip(judge(), dense[:2], video[:, :2], first[:2], False)
    assert max(held, after, kept) < 1e-6  # nothing changes, nothing is lost
    held, after, kept = judge_clip(judge(), dense, video, first, False)
    change = 1 - torch.cosine_similarity(dense[0], dense[2], dim=-1).mean()
    assert held == pytest.approx(float(change) / 3, rel=1e-3) and after == pytest.approx(float(change) / 2, rel=1e-3)
    assert kept < 1e-6


def test_kept_units_see_one_another_only() -> None:
    video, keep = torch.randn(1, 2, 3, SIDE, SIDE), torch.zeros(2, 16, dtype=torch.bool)
    keep[0, :3], keep[1, 5:9] = True, True
    tokens = judge().tokens(video, keep)
    assert not bool(tokens[~keep].any())
    other = video.clone()
    other[..., SIDE // 2 + 8 :, :] = 0  # the last row of units, of which none is kept
    assert torch.equal(judge().tokens(other, keep), tokens)


def test_a_context_token_stands_for_four_units() -> None:
    held = judge().context(torch.randn(1, 3, SIDE, SIDE)).unflatten(0, (4, 4))
    assert torch.equal(held[::2, ::2], held[1::2, 1::2]) and not torch.equal(held[0, 0], held[0, 2])
