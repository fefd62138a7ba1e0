"""Calibration: what is fitted on a few sources holds for new ones; on made-up stops it keeps its promise."""

from __future__ import annotations

import pytest
import torch

from autogaze.model import AutoGaze, AutoGazeConfig
from autogaze.pretrain.judge import Judge
from autogaze.pretrain.reconstructor.network import Reconstructor
from autogaze.stop_rule.calibration import (
    DRAWN,
    LONGEST_RATIO,
    SHARE,
    SLACK,
    Sampling,
    Trial,
    calibrate,
    fit_calibration,
    predicted_range,
    run_trials,
    safe_loss,
)
from tests.rl.test_env import TINY, spotted_clip
from tests.rl.test_module import CONFIG

THRESHOLDS = torch.linspace(0.1, 0.9, 17).tolist()
FRAMES = 12  # of a source


def made_up_trials(bias: float, noise: float, sources: int = 16, apart: float = 0.0, seed: int = 0) -> list[Trial]:
    """A model whose predictions are low by a share: stopping at t leaves t x (1 + bias + noise of the frame + an error
    that all frames of a source share)."""
    generator = torch.Generator().manual_seed(seed)
    shared = (apart * torch.randn(sources, 1, generator=generator)).expand(-1, FRAMES).flatten()
    source = torch.arange(sources).repeat_interleave(FRAMES)
    return [
        trial(t, t * (1 + bias + shared + noise * torch.randn(len(source), generator=generator)), source)
        for t in THRESHOLDS
    ]


def trial(threshold: float, loss: torch.Tensor, source: torch.Tensor) -> Trial:
    """Of frames that stop as soon as the threshold is reached."""
    return Trial(threshold, loss, source, torch.full_like(loss, threshold))


def kept(
    pairs: tuple[tuple[float, float], ...], asked: float, bias: float, noise: float, apart: float = 0.0, seed: int = 1
) -> float:
    """Share of kept stops in frames of 1000 new sources."""
    generator = torch.Generator().manual_seed(seed)
    threshold = float(AutoGazeConfig(calibration=pairs).threshold(torch.tensor(asked)))
    loss = threshold * (
        1
        + bias
        + apart * torch.randn(1000, 1, generator=generator)
        + noise * torch.randn(1000, FRAMES, generator=generator)
    )
    return float((loss <= SLACK * asked).float().mean())


def test_a_calibrated_requirement_is_met_by_nine_frames_in_ten() -> None:
    pairs = fit_calibration([made_up_trials(0.1, 0.03)])
    for asked in (0.4, 0.52, 0.8):
        assert 0.9 <= kept(pairs, asked, 0.1, 0.03) <= 0.99  # and it does not simply never stop


@pytest.mark.parametrize("sources", [10, 16, 40])
def test_frames_of_a_source_that_err_together_are_allowed_for(sources: int) -> None:
    """The promise is one on average over which sources were at hand, so that is what is looked at."""
    shares, naive = [], []
    for seed in range(12 if sources < 40 else 5):  # many sources vary less from draw to draw
        trials = made_up_trials(0.1, 0.02, sources, apart=0.08, seed=seed)
        shares.append(kept(fit_calibration([trials]), 0.6, 0.1, 0.02, 0.08, seed))
        alone = [trial(one.threshold, one.loss, torch.arange(len(one.loss))) for one in trials]
        naive.append(kept(fit_calibration([alone]), 0.6, 0.1, 0.02, 0.08, seed))
    assert torch.tensor(shares).mean() >= 0.9
    assert torch.tensor(shares).mean() > torch.tensor(naive).mean()


def test_the_safe_loss_is_the_quantile_over_sources() -> None:
    loss = torch.arange(1.0, 21.0)
    assert safe_loss(loss, torch.arange(20), 0.9) == 20.0  # 0.9 x 21 / 20 of 8 drawn is 7.6: of most draws, the last
    assert safe_loss(loss[:8], torch.arange(8), 0.9) == 8.0  # 0.9 x 9 / 8 is above 1: all of them
    lopsided = torch.cat([torch.zeros(1000), torch.ones(19)])  # 19 sources of one bad frame, one of 1000 good ones
    assert safe_loss(lopsided, torch.cat([torch.zeros(1000), torch.arange(1, 20)]).long(), 0.9) == 1.0
    assert safe_loss(lopsided[:1003], torch.arange(1003), 0.9) == 0.0  # of 42 sets of 8 one has a bad one


@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_the_promise_holds_for_so_many_sets_of_new_sources(confidence: float) -> None:
    generator = torch.Generator().manual_seed(0)
    safe = safe_loss(torch.randn(2000, generator=generator), torch.arange(2000), 0.9, confidence)
    new = torch.randn(5000, DRAWN, generator=generator)
    kept_sets = ((new <= safe).float().mean(1) >= 0.9).float().mean()
    assert float(kept_sets) == pytest.approx(confidence, abs=0.05)


def test_an_exact_model_is_left_almost_as_it_is() -> None:
    config = AutoGazeConfig(calibration=fit_calibration([made_up_trials(0.0, 0.0)]))
    for asked in (0.3, 0.5, 0.7):
        assert float(config.threshold(torch.tensor(asked))) == pytest.approx(asked * SLACK, abs=0.001)


def test_a_threshold_serves_only_what_every_lower_one_serves() -> None:
    """Otherwise the luckiest of many thresholds would be taken."""
    made = ((0.1, 0.2), (0.2, 0.6), (0.4, 0.5), (0.8, 0.8))
    pairs = fit_calibration([[trial(t, torch.full((20,), loss), torch.arange(20)) for t, loss in made]], slack=1.0)
    assert pairs == ((0.2, 0.1), (0.6, 0.4), (0.8, 0.8))


def test_thresholds_near_by_are_taken_together() -> None:
    """A source whose frames stop well at one threshold and badly at its neighbours is no luck to rely on."""
    source = torch.arange(10)
    bad, lucky = torch.full((10,), 1.0), torch.full((10,), 1.0)
    bad[0] = 2.0
    trials = [trial(t, t * loss, source) for t, loss in ((0.4, bad), (0.5, lucky), (0.6, bad), (1.0, lucky))]
    assert fit_calibration([trials], slack=1.0) == ((0.8, 0.4), (1.0, 0.5), (1.2, 1.0))
    assert fit_calibration([trials[1:2]], slack=1.0) == ((0.5, 0.5),)


def test_frames_that_are_done_at_once_do_not_hide_errors() -> None:
    """Nineteen in twenty frames stop far below a high threshold; the others tell how wrong the prediction is."""
    predicted = torch.full((200,), 0.1)
    predicted[::20] = 1.0
    stops = Trial(1.0, 1.3 * predicted, torch.arange(200) // 20, predicted)
    assert fit_calibration([[stops]], slack=1.0) == ((1.3, 1.0),)


def test_the_worst_way_of_taking_frames_counts() -> None:
    easy, hard = made_up_trials(0.1, 0.02), made_up_trials(0.2, 0.02)
    assert fit_calibration([easy, hard]) == fit_calibration([hard, easy]) == fit_calibration([hard])


def test_thresholds_never_fall() -> None:
    generator = torch.Generator().manual_seed(0)
    trials = [trial(t, torch.rand(20, generator=generator), torch.arange(20)) for t in THRESHOLDS]
    pairs = fit_calibration([trials])
    assert pairs == tuple(sorted(pairs)) and len({asked for asked, _ in pairs}) == len(pairs)
    AutoGazeConfig(calibration=pairs)  # which refuses what does not ascend


def test_a_threshold_at_which_hardly_anything_stops_does_not_count() -> None:
    few, many = trial(0.1, torch.zeros(7), torch.arange(7)), trial(0.2, torch.full((8,), SLACK), torch.arange(8))
    assert fit_calibration([[few, many]], SHARE) == ((1.0, 0.2),)
    assert fit_calibration([[few]]) == ()
    assert fit_calibration([[few], [trial(0.1, many.loss, many.source)]]) == ((1.0, 0.1),)


@pytest.fixture
def judge() -> Judge:
    torch.manual_seed(0)
    return Judge(Reconstructor(TINY))


def test_trials_hold_the_stops_of_every_source_and_leave_the_model_as_it_is(judge: Judge) -> None:
    pair, alone = torch.stack([spotted_clip(0), spotted_clip(1)]), spotted_clip(2)[None]
    torch.manual_seed(0)
    model = AutoGaze(CONFIG).with_calibration(((0.1, 0.2),))
    low, high = predicted_range(model, [pair, alone], 2)
    never, always = run_trials(model, judge, Sampling([pair, alone], ["a", "b", "a"]), [low - 1, high + 1])
    assert len(never.loss) == 0
    frames = pair.shape[1]
    assert always.source.tolist() == [0] * frames + [1] * frames + [0] * frames
    gaze = model.with_calibration(()).generate(alone, gazing_ratio=LONGEST_RATIO, task_loss_requirement=high + 1)
    assert torch.allclose(always.loss[-frames:], judge.losses(alone, gaze)[0], atol=1e-6)
    with pytest.raises(ValueError, match="need the source of every clip: got 2 for 3"):
        Sampling([pair, alone], ["a", "b"])


def test_a_calibrated_model_stops_where_its_trials_said(judge: Judge) -> None:
    clips = [torch.stack([spotted_clip(seed) for seed in range(10)])]
    torch.manual_seed(0)
    model = calibrate(AutoGaze(CONFIG), judge, [Sampling(clips, list("abcdefghij"))], thresholds=4)
    assert model.config.calibration
    asked = model.config.calibration[-1][0]
    gaze = model.generate(clips[0], gazing_ratio=LONGEST_RATIO, task_loss_requirement=asked)
    stops = gaze.counts < CONFIG.grid.budget(LONGEST_RATIO)
    assert bool(stops.any())
    assert float((judge.losses(clips[0], gaze)[stops] <= SLACK * asked + 1e-5).float().mean()) >= SHARE
