"""The benchmarks of quality, ablations, precision and labels, and the model card, at a tiny size."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autogaze.cli import card
from autogaze.evaluate.bootstrap import Interval
from autogaze.evaluate.results import Comparison, Results
from autogaze.evaluate.summary import LOSS_MINUS, LOSS_OVER, WAY
from autogaze.media.scenes import write_scenes
from benchmarks import ablations, labels, precision, quality
from tests.evaluate.evaluate_folder import make_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to evaluate, with the quality benchmark already run on it (out.json)."""
    root = make_folder(tmp_path_factory.mktemp("benchmarks"))
    words = ["--data", str(root), "--split", "clips", "--reconstructor", str(root / "judge"), "--frames", "4"]
    words += ["--checkpoint", f"ntp={root / 'model'}", "--checkpoint", f"rl={root / 'other'}", "--device", "cpu"]
    words += ["--against", "random,difference,coarse,oracle", "--oracle-ratios", "0.1", "--out", str(root / "out.json")]
    assert quality.main(words) == 0
    return root


def test_the_quality_benchmark_keeps_everything_in_one_file(folder: Path) -> None:
    data, results = json.loads((folder / "out.json").read_text()), Results.load(folder / "out.json")
    assert results.methods("network") == ["ntp", "rl"]
    assert {timing["method"] for timing in data["timings"]} == {"random", "difference", "coarse", "ntp", "rl"}
    assert all(timing["median_ms"] > 0 for timing in data["timings"])
    assert data["machine"]["torch"] and data["seconds"] > 0
    assert [goal["name"] for goal in data["goals"]][:4] == [
        "loss / random's at 0.05",
        "loss / best selector's at 0.05",
        "way from random to the oracle at 0.05",
        "loss - ntp's at 0.05, upper end of 95 %",
    ]
    assert (folder / "out.png").stat().st_size > 10_000
    assert "**Goals**" in (folder / "out.md").read_text()


def test_goals_judge_the_last_checkpoint(folder: Path) -> None:
    results = Results.load(folder / "out.json")

    def comparison(figure: str, against: str, value: float) -> list[Comparison]:
        interval = Interval(value, value - 0.01, value + 0.01)
        return [Comparison(figure, "rl", against, ratio, interval) for ratio in (0.05, 0.1)]

    good = [
        *comparison(LOSS_OVER, "random", 0.70),
        *comparison(LOSS_OVER, "difference", 0.85),
        *comparison(WAY, "oracle", 0.65),
        *comparison(LOSS_MINUS, "ntp", -0.02),
    ]
    met = {goal.name: goal.met for goal in quality.check_goals(replace(results, comparisons=tuple(good), kinds=()))}
    assert sum(met.values()) == 8
    bad = [
        *comparison(LOSS_OVER, "random", 0.73),
        *comparison(LOSS_OVER, "difference", 0.89),
        *comparison(WAY, "oracle", 0.55),
        *comparison(LOSS_MINUS, "ntp", -0.005),
    ]
    assert not any(goal.met for goal in quality.check_goals(replace(results, comparisons=tuple(bad), kinds=())))


def test_a_goal_that_was_not_measured_is_not_met(folder: Path) -> None:
    results = replace(Results.load(folder / "out.json"), comparisons=(), kinds=())
    assert all(goal.value is None and not goal.met for goal in quality.check_goals(results))


def test_ablations_compare_the_runs_of_an_axis(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", str(folder), "--split", "clips", "--reconstructor", str(folder / "judge"), "--frames", "4"]
    for value, name in (("without", "model"), ("with", "other"), ("again", "model")):
        words += ["--run", f"RL:{value}={folder / name}"]
    words += ["--ratios", "0.2", "--device", "cpu", "--out", str(folder / "ablations.json")]
    assert ablations.main(words) == 0
    lines = json.loads((folder / "ablations.json").read_text())["lines"]
    assert [line["value"] for line in lines] == ["without", "with", "again"]
    assert lines[0]["over_first"] is None and lines[2]["over_first"]["value"] == pytest.approx(1.0)
    assert lines[1]["over_first"]["value"] == pytest.approx(lines[1]["loss"]["value"] / lines[0]["loss"]["value"])
    assert "| RL: with | 2 | 0.2 |" in capsys.readouterr().out


def test_a_run_needs_an_axis_a_value_and_a_checkpoint() -> None:
    assert ablations.parse_run("K:10=a/b") == ablations.Run("K", "10", "a/b")
    with pytest.raises(argparse.ArgumentTypeError, match="AXIS:VALUE=CHECKPOINT"):
        ablations.parse_run("K=a/b")


def test_the_card_tells_what_the_files_say_and_nothing_else(folder: Path) -> None:
    (folder / "summary.json").write_text(json.dumps({"pretrain": {"steps": 1234, "minutes": 5.5}, "model": "x"}))
    out = folder / "README.md"
    assert (
        card.main(
            [
                str(folder / "out.json"),
                "--weights",
                str(folder / "other"),
                "--training",
                str(folder / "summary.json"),
                "--commit",
                "abc123",
                "--data",
                "3 scenes",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    text, results = out.read_text(), Results.load(folder / "out.json")
    row = results.row("rl", 0.1)
    assert row is not None and f"{row.loss.value:.4f}" in text
    assert "steps 1234, minutes 5.5" in text and "Commit: abc123." in text and "Data: 3 scenes." in text
    assert "does better: our loss is" in text  # random weights lose to the difference selector, and the card says so
    assert str(folder) not in text


def test_a_card_needs_a_network(folder: Path) -> None:
    results = Results.load(folder / "out.json")
    replace(results, rows=tuple(row for row in results.rows if row.sort != "network")).save(folder / "none.json")
    with pytest.raises(ValueError, match="holds no network"):
        card.make_card(folder / "none.json", str(folder / "model"))


def test_both_precisions_are_compared_on_every_way_of_taking_frames(folder: Path, tmp_path: Path) -> None:
    words = ["--checkpoint", str(folder / "model"), "--reconstructor", str(folder / "judge"), "--frames", "4"]
    words += ["--data", str(folder / "clips"), "--ratios", "0.1", "--strides", "0", "1", "--device", "cpu"]
    assert precision.main([*words, "--out", str(tmp_path / "out.json")]) == 0
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["stride"] for row in rows] == [0, 1, None] and rows[2]["clips"] == rows[0]["clips"] + rows[1]["clips"]
    for row in rows:
        assert row["loss_above"] == pytest.approx(row["bfloat16_loss"] / row["float32_loss"] - 1, abs=1e-6)
        assert 0.5 < row["same_patches"] <= 1


def test_fast_labels_are_compared_with_exact_ones_alone_and_in_copies(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scenes(tmp_path / "scenes", clips=4, frames=4, size=(96, 96), share_val=0.5)
    words = ["--reconstructor", str(folder / "judge"), "--data", str(tmp_path / "scenes"), "--device", "cpu"]
    words += ["--clips", "2", "--frames", "2", "--mean-ratio", "0.01", "--at-once", "64"]
    assert labels.main([*words, "--copies", "2", "--out", str(tmp_path / "out.json")]) == 0
    exact, fast, many = json.loads((tmp_path / "out.json").read_text())["searches"]
    assert (exact["clips"], fast["clips"], many["clips"]) == (2, 2, 4)
    assert fast["times_faster"] == pytest.approx(fast["clips_a_minute"] / exact["clips_a_minute"])
    assert many["loss"] == pytest.approx(fast["loss"], rel=1e-3)
    assert fast["loss"] == pytest.approx(exact["loss"], rel=0.05)
    assert fast["loss_above_exact"] == pytest.approx(fast["loss"] / exact["loss"] - 1)
    assert labels.main([*words, "--copies", "-1"]) == 2
    assert "--copies not negative" in capsys.readouterr().err


def test_clips_of_one_source_count_as_one_for_the_error_of_a_mean() -> None:
    full, half = torch.ones(4), torch.tensor([1.1, 1.1, 0.9, 0.9])
    clips = precision.Clips(full, half, torch.ones(4))
    alone, together = (precision.agreement(0.1, 0, clips, groups) for groups in ("abcd", "aabb"))
    assert alone.loss_above == pytest.approx(0, abs=1e-6)
    assert alone.standard_error == pytest.approx(float(half.std()) / 2, rel=1e-4)
    assert together.standard_error == pytest.approx(0.1, rel=1e-4)
