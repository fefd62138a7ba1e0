"""The benchmark runs at toy size, and its opponent after the tower keeps what its authors say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from benchmarks.mllm import main, unlike  # noqa: E402
from tests.mllm.mllm_models import gaze  # noqa: E402


@pytest.mark.parametrize("name", ["Qwen2.5-VL-7B", "Qwen3-VL-8B"])
def test_the_benchmark_writes_times_of_every_opponent(name: str, tmp_path: Path) -> None:
    gaze().save_pretrained(tmp_path / "gaze")
    side = "112" if name.startswith("Qwen2.5") else "128"
    size = ["--frames", "4", "--prompts", "2", "--prompt-frames", "4", "--new-tokens", "2", "--side", side]
    out = tmp_path / "out.json"
    model = ["--models", name, "--tiny", "--gaze", str(tmp_path / "gaze"), "--ratio", "0.2"]
    assert main([*model, *size, "--runs", "1", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    rows = {(row["prompts"], row["way"]): row for row in result["timings"]}
    assert len(rows) == 8 and all(row["median_ms"] > 0 for row in rows.values())
    for prompts in (1, 2):
        dense, gazed = rows[prompts, "dense"]["visual_tokens"], rows[prompts, "gazed"]["visual_tokens"]
        assert dense == prompts * 2 * 16 and gazed == prompts * (16 + 3)  # first pair in full, a fifth of the second
        assert rows[prompts, "after the tower"]["visual_tokens"] == gazed
    assert set(result["parts"][0]["milliseconds"]) == {
        "read, resize, write the text", "gaze and choose units", "tower on kept units", "ids and positions",
        "prefill and first token",
    }  # fmt: skip


def test_pruning_after_the_tower_keeps_the_first_step_and_what_changed_most() -> None:
    tokens = torch.eye(4)[None].repeat(3, 1, 1)
    tokens[1, 2], tokens[2, 2] = tokens[1, 0], tokens[1, 0]  # changes once, then stays
    kept = unlike(tokens, 5)
    assert kept.tolist() == [[True] * 4, [False, False, True, False], [False] * 4]
