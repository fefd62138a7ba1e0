"""Calibration: on made-up stops it keeps its promise; on a model it changes what the stop rule does as promised."""

from __future__ import annotations

import pytest
import torch

from autogaze.model import AutoGazeConfig
from autogaze.pretrain.calibration import Trial, fit_calibration

THRESHOLDS = torch.linspace(0.1, 0.9, 33).tolist()


def made_up_trials(bias: float, noise: float) -> list[Trial]:
    """A model whose predictions are `bias` too low and noisy: stopping at t leaves about t + bias."""
    generator = torch.Generator().manual_seed(0)
    return [Trial(t, t + bias + noise * torch.randn(400, generator=generator), 0.1) for t in THRESHOLDS]


def test_a_calibrated_requirement_is_met_by_nine_frames_in_ten() -> None:
    pairs = fit_calibration(made_up_trials(0.1, 0.03), torch.linspace(0.3, 0.9, 13).tolist())
    config = AutoGazeConfig(calibration=pairs)
    generator = torch.Generator().manual_seed(1)
    for asked in (0.4, 0.52, 0.8):
        threshold = float(config.threshold(torch.tensor(asked)))
        loss = threshold + 0.1 + 0.03 * torch.randn(2000, generator=generator)
        assert float((loss <= 1.05 * asked).float().mean()) >= 0.88
        assert threshold >= asked - 0.1 - 0.09  # and it does not simply never stop


def test_an_exact_model_is_left_almost_as_it_is() -> None:
    pairs = fit_calibration(made_up_trials(0.0, 0.0), [0.3, 0.5, 0.7])
    for asked, threshold in pairs:
        assert threshold == pytest.approx(asked * 1.05, abs=0.03)


def test_thresholds_never_fall() -> None:
    generator = torch.Generator().manual_seed(0)
    trials = [Trial(t, torch.rand(20, generator=generator), 0.1) for t in THRESHOLDS]
    thresholds = [threshold for _, threshold in fit_calibration(trials, torch.linspace(0.5, 1.0, 9).tolist())]
    assert thresholds == sorted(thresholds)


def test_what_no_trial_reaches_is_left_out() -> None:
    assert fit_calibration(made_up_trials(0.5, 0.0), [0.2, 0.3]) == ()
