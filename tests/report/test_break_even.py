"""The break-even answer against parts whose answer is known, and the page and command made of it."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import pytest

from autogaze.report.break_even import Parts, VitParts, add_arguments, in_words, load_parts, run, will_it_pay

VIT = "vit_base_patch16_siglip_224"


def _parts(gaze_ms: float = 1.0) -> Parts:
    """Dense: 1 ms a frame; encode: 1 ms for 265 patches; gaze: `gaze_ms` a clip, at any ratio."""
    dense = tuple((float(n), float(n)) for n in (1, 16, 256))
    encode = tuple((265.0 * n, float(n)) for n in (1, 16, 256))
    gaze = tuple((float(n), gaze_ms * n) for n in (1, 8))
    return Parts(
        "a machine", "2026-01-01", {VIT: VitParts(16, 768, 12, 3072, {224: dense}, encode)}, {0.1: gaze, 0.5: gaze}
    )


def test_times_are_read_off_the_parts() -> None:
    verdict = will_it_pay("ViT-B/16", 224, 16, 4, 0.5, _parts())
    assert verdict.dense_ms == pytest.approx(64)  # frames
    assert verdict.gaze_ms == pytest.approx(4)  # clips
    assert verdict.encode_ms == pytest.approx(64 * 132 / 265, rel=1e-3)  # int(0.5 * 265) patches a frame
    assert verdict.pays and verdict.times_faster == pytest.approx(64 / (4 + 64 * 132 / 265), rel=1e-3)
    assert verdict.break_even_ratio == pytest.approx(8 / 9, abs=0.011)  # a clip: 16 = 2 r + 16 r


def test_a_slow_gaze_does_not_pay_and_the_answer_says_so() -> None:
    verdict = will_it_pay(VIT, 224, 16, 1, 0.1, _parts(gaze_ms=40.0))
    assert not verdict.pays and verdict.break_even_ratio is None
    assert in_words(verdict).startswith(
        "No: 2.6 x slower (dense 16.00 ms, gaze 40.00 + encode 1.57 = 41.57 ms). It pays at no ratio"
    )


def test_beyond_the_measured_points_time_grows_in_proportion() -> None:
    assert will_it_pay(VIT, 224, 16, 64, 0.1, _parts()).dense_ms == pytest.approx(1024)


def test_other_frame_sizes_are_reckoned_by_operations() -> None:
    small, large = (will_it_pay(VIT, size, 16, 1, 0.1, _parts()) for size in (224, 448))
    assert 4.0 < large.dense_ms / small.dense_ms < 4.6  # four times the patches, and more attention
    assert large.gaze_ms == pytest.approx(4 * small.gaze_ms)  # four squares to look at


def test_a_gaze_stride_leaves_fewer_squares_to_look_at() -> None:
    near, far = (will_it_pay(VIT, 448, 16, 1, 0.1, _parts(), gaze_stride=n) for n in (1, 2))
    assert near.gaze_ms == pytest.approx(4) and far.gaze_ms == pytest.approx(1) and far.gaze_stride == 2
    assert (near.dense_ms, near.encode_ms) == (far.dense_ms, far.encode_ms)
    assert near.break_even_ratio is not None and far.break_even_ratio is not None
    assert near.break_even_ratio < far.break_even_ratio
    assert "ratio 0.1, gaze stride 2;" in in_words(far) and "stride" not in in_words(near)
    with pytest.raises(ValueError, match="gaze_stride=2 gains nothing"):
        will_it_pay(VIT, 224, 16, 1, 0.1, _parts(), gaze_stride=2)


def test_shorter_clips_cost_less_to_gaze_at_and_longer_ones_more() -> None:
    times = [will_it_pay(VIT, 224, frames, 1, 0.1, _parts()).gaze_ms for frames in (4, 16, 32)]
    assert times == pytest.approx([0.25, 1.0, 2.0])


@pytest.mark.parametrize(("arguments", "message"), [
    (("ResNet-50", 224, 16, 1, 0.1), "no measurements of 'ResNet-50'; measured: .*vit-b/16"),
    ((VIT, 224, 16, 1, 0.0), r"ratio in \(0, 1\]"),
    ((VIT, 0, 16, 1, 0.1), "must be positive"),
])  # fmt: skip
def test_questions_without_an_answer_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        will_it_pay(*arguments, _parts())


def test_missing_measurements_name_the_command_that_makes_them(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="benchmarks.vit --parts --ship"):
        load_parts(tmp_path / "none.json")


def test_the_command_answers_in_words_and_numbers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autogaze.report.break_even.load_parts", _parts)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    parser.add_argument("--json", action="store_true")
    question = ["--vit", "vit-b/16", "--batch", "4", "--ratio", "0.5"]
    assert run(parser.parse_args([*question, "--json"])) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["pays"] and math.isclose(result["dense_ms"], 64)
    assert run(parser.parse_args([*question, "--size", "448", "--gaze-stride", "2", "--json"])) == 0
    assert json.loads(capsys.readouterr().out)["gaze_stride"] == 2
    assert run(parser.parse_args(question)) == 0
    assert capsys.readouterr().out.startswith("Yes: ")


def test_the_page_and_the_chart_show_every_measured_vit(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    pytest.importorskip("matplotlib")
    from benchmarks.vit_parts import draw, page

    text = page(_parts())
    assert text.count(f"| {VIT} | 224 | 265 |") == 3 and "measured on a machine (2026-01-01)" in text
    draw(_parts(), tmp_path / "chart.svg")
    assert "gazing pays below this ratio" in (tmp_path / "chart.svg").read_text()
