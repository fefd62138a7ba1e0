"""Requests: every form a caller may use, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from autogaze import PatchGrid
from autogaze.decoding.request import make_request

GRID = PatchGrid((16, 32, 64))  # 21 ids


def budgets(ratio: Any, batch: int = 2, frames: int = 3) -> list:
    return make_request(GRID, batch, frames, ratio).budget.tolist()


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (0.5, [[10] * 3] * 2),
        (None, [[21] * 3] * 2),
        (1, [[21] * 3] * 2),
        (0, [[0] * 3] * 2),
        (0.001, [[1] * 3] * 2),
        ([0.1, 0.5, 1.0], [[2, 10, 21]] * 2),
        (torch.tensor([0.1, 0.5, 1.0]), [[2, 10, 21]] * 2),
        (torch.tensor([0.1, 0.5]), [[2] * 3, [10] * 3]),
        ([0.1, 0.5], [[2] * 3, [10] * 3]),
        (torch.tensor([[0.1], [0.5]]), [[2] * 3, [10] * 3]),
        (torch.tensor([[0.1, 0.5, 1.0]]), [[2, 10, 21]] * 2),
        (torch.tensor([[0.1, 0.5, 1.0], [0.0, 1.0, 0.2]]), [[2, 10, 21], [0, 21, 4]]),
        (torch.tensor(0.5), [[10] * 3] * 2),
        (np.array([0.1, 0.5, 1.0]), [[2, 10, 21]] * 2),
    ],
)
def test_a_ratio_may_be_one_number_or_per_frame_or_per_clip(ratio: Any, expected: list) -> None:
    assert budgets(ratio) == expected


@pytest.mark.parametrize("container", [list, tuple, np.array, torch.tensor])
def test_shape_decides_and_never_the_container(container: Any) -> None:
    assert budgets(container([[0.1, 0.5]]), 2, 2) == [[2, 10], [2, 10]]
    assert budgets(container([[0.1], [0.5]]), 2, 2) == [[2, 2], [10, 10]]
    assert budgets(container([0.1, 0.5]), 3, 2) == [[2, 10]] * 3
    assert budgets(container([0.1, 0.5]), 2, 3) == [[2] * 3, [10] * 3]
    with pytest.raises(ValueError, match=r"one a frame or one a clip.* \(1, 2\) for frames or \(2, 1\) for clips"):
        budgets(container([0.1, 0.5]), 2, 2)


@pytest.mark.parametrize("ratio", ["0.1", True, b"1", ["0.1"], [True, 0.5], np.array(["a"]), torch.tensor(True), 1j])
def test_what_is_no_number_is_refused_by_type(ratio: Any) -> None:
    with pytest.raises(TypeError, match="gazing_ratio must be a number, numbers or None, got"):
        budgets(ratio)


def test_the_budget_of_every_percent_is_the_published_one() -> None:
    grid = PatchGrid()
    for percent in range(1, 101):
        published = int((torch.ones(1) * (percent / 100) * grid.patches_per_frame).to(torch.long).clamp(min=1))
        for ratio in (percent / 100, torch.tensor(percent / 100)):
            assert make_request(grid, 1, 1, ratio).budget.item() == published, percent


@pytest.mark.parametrize(
    ("ratio", "message"),
    [
        (1.5, r"gazing_ratio must be in \[0, 1\]"),
        (-0.1, r"gazing_ratio must be in \[0, 1\]"),
        (float("nan"), "must not be NaN"),
        ([0.1] * 4, r"gazing_ratio must be a number, \(3,\) or .*, got shape \(4,\)"),
        (torch.zeros(3, 2), "gazing_ratio must be a number"),
        (torch.zeros(2, 3, 1), "gazing_ratio must be a number"),
    ],
)
def test_a_ratio_that_does_not_fit_is_refused(ratio: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        budgets(ratio)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_is_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be positive"):
        make_request(GRID, 1, 1, temperature=temperature)


def test_scales_allow_only_their_ids_and_bound_the_budget() -> None:
    assert make_request(GRID, 1, 1).allowed is None and make_request(GRID, 1, 1, scales=(64, 16, 32)).allowed is None
    request = make_request(GRID, 1, 3, [0.5, 1.0, 0.0], scales=(32,))
    assert request.allowed is not None and request.allowed.nonzero().flatten().tolist() == [1, 2, 3, 4]
    assert request.budget.tolist() == [[4, 4, 0]]
    assert make_request(GRID, 1, 1, 0.5, scales=(16, 64)).budget.item() == 10  # a share of all ids of the grid
    assert request.clip(0).frames(0, 1).allowed is request.allowed


@pytest.mark.parametrize("scales", [(), (48,), (32, 48), [0]])
def test_scales_that_the_grid_does_not_have_are_refused(scales: Any) -> None:
    with pytest.raises(ValueError, match=r"scales must be some of the grid's \(16, 32, 64\) \(pixels\), got"):
        make_request(GRID, 1, 1, scales=scales)


def test_uniform_means_that_the_same_is_spent() -> None:
    assert make_request(GRID, 2, 2, [[0.5, 0.1]]).uniform and make_request(GRID, 1, 2, 0.5, 0.7).uniform
    assert not make_request(GRID, 2, 2, 0.5, 0.7).uniform
    assert not make_request(GRID, 2, 2, torch.tensor([[0.5], [0.1]])).uniform


def test_parts_of_a_request() -> None:
    request = make_request(GRID, 2, 3, torch.tensor([[0.1, 0.5, 1.0], [0.0, 1.0, 0.2]]), [0.3, 0.2, 0.1], 2.0)
    part = request.clip(1).frames(1, 3)
    assert part.budget.tolist() == [[21, 4]] and part.temperature == 2.0
    assert part.requirement is not None and part.requirement[0].tolist() == pytest.approx([0.2, 0.1])
    tiled = request.repeated(2)
    assert tiled.budget.tolist() == [[2, 10, 21]] * 2 + [[0, 21, 4]] * 2
    assert tiled.requirement is not None and tiled.requirement.shape == (4, 3)
