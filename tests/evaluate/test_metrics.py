"""PSNR and SSIM against their definitions, bootstrap against what it promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from autogaze.evaluate.bootstrap import bootstrap, difference, ratio, way
from autogaze.evaluate.metrics import HIGHEST_PSNR, psnr, ssim


def noisy(sigma: float) -> tuple[torch.Tensor, torch.Tensor]:
    truth = torch.rand(2, 3, 3, 32, 32) * 2 - 1
    return truth, truth + sigma * torch.randn_like(truth)


def test_psnr_of_known_noise() -> None:
    truth, frames = noisy(0.02)
    expected = 10 * np.log10(4 / 0.02**2)  # the range is 2 wide
    torch.testing.assert_close(psnr(frames, truth), torch.full((2,), float(expected)), atol=0.2, rtol=0)


def test_an_exact_copy_is_as_good_as_it_gets() -> None:
    truth, _ = noisy(0.0)
    assert psnr(truth, truth).tolist() == [HIGHEST_PSNR] * 2
    torch.testing.assert_close(ssim(truth, truth), torch.ones(2))


def test_ssim_equals_a_loop_over_windows() -> None:
    truth, frames = (video[:1, :1, :1, :13, :12] for video in noisy(0.3))
    x, y = frames[0, 0, 0].double().numpy(), truth[0, 0, 0].double().numpy()
    offset = np.arange(11) - 5
    line = np.exp(-(offset**2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    values = []
    for i in range(3):
        for j in range(2):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            ma, mb = (window * a).sum(), (window * b).sum()
            va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
            cov = (window * (a - ma) * (b - mb)).sum()
            c1, c2 = 0.02**2, 0.06**2
            values.append((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    assert float(ssim(frames, truth)) == pytest.approx(np.mean(values), abs=1e-4)


def test_ssim_refuses_frames_smaller_than_its_window() -> None:
    with pytest.raises(ValueError, match="at least 11 px"):
        ssim(torch.zeros(1, 1, 3, 8, 8), torch.zeros(1, 1, 3, 8, 8))


def test_the_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    found = [bootstrap([rng.exponential(2.0, 60)], resamples=400, seed=i) for i in range(200)]
    covered = np.mean([one.low <= 2.0 <= one.high for one in found])
    assert 0.88 <= covered <= 0.98


def test_clips_of_one_source_do_not_count_as_independent() -> None:
    values = np.repeat(np.random.default_rng(1).normal(size=10), 8)
    groups = [str(i // 8) for i in range(80)]
    apart, together = bootstrap([values]), bootstrap([values], groups)
    assert together.value == pytest.approx(apart.value)
    assert together.high - together.low > 2 * (apart.high - apart.low)


def test_comparisons_are_paired() -> None:
    hard = np.random.default_rng(2).uniform(1, 10, 40)  # clips differ much more than methods do
    assert bootstrap([0.9 * hard, hard], statistic=ratio).high == pytest.approx(0.9)
    assert bootstrap([hard - 0.1, hard], statistic=difference).high == pytest.approx(-0.1)
    assert bootstrap([0.4 * hard, hard, 0.2 * hard], statistic=way).low == pytest.approx(0.75)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.arange(12.0)
    assert bootstrap([values], seed=3) == bootstrap([values], seed=3) != bootstrap([values], seed=4)


def test_no_clips_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one clip"):
        bootstrap([np.zeros(0)])
