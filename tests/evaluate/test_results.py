"""Results of measurements: curves, comparisons, tables, the file and the card."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from autogaze.evaluate.clips import ClipSet
from autogaze.evaluate.measurement import Measurement, Scores
from autogaze.evaluate.results import Results
from autogaze.evaluate.summary import LOSS_MINUS, LOSS_OVER, WAY, comparisons, ratio_at, ratios_for_loss, worst_clips
from autogaze.media.preprocess import Preprocessor

CLIPS = ClipSet(
    tuple("abcd"),
    ("cctv", "cctv", "sports", "sports"),
    ("1", "1", "2", "3"),
    torch.zeros(4, 1, 8, 8, 3, dtype=torch.uint8),
    Preprocessor(),
)
HARD = np.array([1.0, 2.0, 3.0, 4.0])


def measured(method: str, sort: str, ratio: float, factor: float | np.ndarray) -> Measurement:
    loss = HARD * factor
    return Measurement(method, sort, ratio, Scores(np.full(4, ratio), loss, -loss, -loss, -loss, -loss))


ALL = [
    measured("random", "selector", 0.1, 1.0),
    measured("difference", "selector", 0.1, 0.8),
    measured("ntp", "network", 0.1, 0.7),
    measured("rl", "network", 0.1, 0.6),
    measured("oracle", "oracle", 0.1, 0.5),
]


def test_networks_are_compared_with_random_the_best_selector_the_oracle_and_one_another() -> None:
    found = {(row.figure, row.method, row.against): row.interval.value for row in comparisons(ALL, CLIPS)}
    assert found == pytest.approx(
        {
            (LOSS_OVER, "ntp", "random"): 0.7,
            (LOSS_OVER, "ntp", "difference"): 0.875,
            (WAY, "ntp", "oracle"): 0.6,
            (LOSS_OVER, "rl", "random"): 0.6,
            (LOSS_OVER, "rl", "difference"): 0.75,
            (WAY, "rl", "oracle"): 0.8,
            (LOSS_MINUS, "rl", "ntp"): -0.25,
        }
    )


def test_the_ratio_needed_is_read_off_the_curve_in_its_logarithm() -> None:
    curve = [(0.01, 1.0), (0.1, 0.5), (0.4, 0.25)]
    assert ratio_at(curve, 0.75) == pytest.approx(10**-1.5)
    assert ratio_at(curve, 2.0) == 0.01
    assert ratio_at(curve, 0.25) == pytest.approx(0.4)
    assert ratio_at(curve, 0.2) is None


def test_ratio_for_loss_tells_what_a_method_needs_to_match_random() -> None:
    curves = [
        measured(name, "selector", ratio, factor / ratio**0.5)
        for name, factor in (("random", 1.0), ("better", 0.5))
        for ratio in (0.01, 0.04, 0.16)
    ]
    rows = {(row.method, row.target): row for row in ratios_for_loss(curves, 1.0)}
    assert rows["random", "random at 0.04"].ratio == pytest.approx(0.04)
    assert rows["better", "random at 0.04"].ratio == pytest.approx(0.01)  # half the loss: a quarter of the patches
    assert rows["better", "random at 0.01"].at_most and not rows["random", "random at 0.01"].at_most
    assert rows["better", "dense loss x 1.1"].ratio is None


def test_the_worst_clips_are_those_that_gain_least_over_random() -> None:
    ours = measured("net", "network", 0.1, np.array([0.5, 0.9, 0.4, 1.2]))
    assert [(row.clip, row.kind) for row in worst_clips([ALL[0], ours], CLIPS)] == [
        ("d", "sports"),
        ("b", "cctv"),
        ("a", "cctv"),
        ("c", "sports"),
    ]


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"rows": []}')
    with pytest.raises(ValueError, match="does not hold results"):
        Results.load(tmp_path / "x.json")
    with pytest.raises(FileNotFoundError, match="no results"):
        Results.load(tmp_path / "y.json")
