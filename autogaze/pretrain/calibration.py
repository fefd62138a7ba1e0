"""Calibration of the stop rule: a user who asks for a loss of 0.3 gets a loss of 0.3.

The stop rule compares a *predicted* loss with what was asked. On validation clips the model is run at many
thresholds, the judge tells the true loss of every frame that stopped, and for each loss that may be asked the
largest threshold is kept at which at least 90 % of those frames are no worse than 5 % above it. The pairs
(asked, threshold) are stored in `AutoGazeConfig.calibration` and applied by every way of decoding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autogaze.model import AutoGaze
from autogaze.pretrain.judge import Judge

SHARE = 0.92  # of the frames that stop must be good enough; promised are 0.9, the rest is room for new clips
SLACK = 1.05  # a frame is good enough up to this times the asked loss
FEWEST_FRAMES = 8  # stops at a threshold that make it count
LONGEST_RATIO = 0.75  # frames that have not stopped here have not stopped


@dataclass(frozen=True, eq=False)
class Trial:
    """What stopping at one threshold led to."""

    threshold: float  # on the predicted loss
    loss: Tensor  # (N,) float, true loss of the frames that stopped by the rule
    ratio: float  # mean share of patches chosen, over all frames


def fit_calibration(trials: Sequence[Trial], asked: Sequence[float], share: float = SHARE,
                    slack: float = SLACK) -> tuple[tuple[float, float], ...]:
    """The threshold that each asked loss needs.

    Args:
        trials: at ascending thresholds.
        asked: ascending losses.
        share: of the stopped frames that must be good enough.
        slack: a frame is good enough up to slack x asked.

    Returns:
        (asked, threshold) pairs, both ascending; losses that no trial reaches are left out.
    """
    pairs: list[tuple[float, float]] = []
    for wanted in asked:
        good = [trial.threshold for trial in trials if len(trial.loss) >= FEWEST_FRAMES
                and float((trial.loss <= slack * wanted).float().mean()) >= share]
        if good:
            pairs.append((wanted, max(good + [threshold for _, threshold in pairs])))
    return tuple(pairs)


def run_trials(model: AutoGaze, judge: Judge, clips: Iterable[Tensor], thresholds: Sequence[float],
               gazing_ratio: float = LONGEST_RATIO) -> list[Trial]:
    """Gaze at clips with every threshold (the model's own calibration is not applied).

    Args:
        model: to be calibrated.
        judge: tells the true losses.
        clips: batches (B, T, 3, H, W) float on the model's device.
        thresholds: on the predicted loss, ascending.
        gazing_ratio: largest share of a frame's patches.
    """
    budget = model.grid.budget(gazing_ratio)
    losses: list[list[Tensor]] = [[] for _ in thresholds]
    counts: list[list[Tensor]] = [[] for _ in thresholds]
    kept = model.config.calibration
    model.with_calibration(())
    try:
        for video in clips:
            for i, threshold in enumerate(thresholds):
                gaze = model.generate(video, gazing_ratio=gazing_ratio, task_loss_requirement=threshold)
                stopped = gaze.counts < budget
                losses[i].append(judge.losses(video, gaze)[stopped].cpu())
                counts[i].append(gaze.counts.flatten().cpu())
    finally:
        model.with_calibration(kept)
    patches = model.grid.patches_per_frame
    return [Trial(threshold, torch.cat(losses[i]), float(torch.cat(counts[i]).float().mean()) / patches)
            for i, threshold in enumerate(thresholds)]


def predicted_range(model: AutoGaze, clips: Iterable[Tensor], count: int,
                    gazing_ratio: float = LONGEST_RATIO) -> list[float]:
    """`count` thresholds that cover what the model predicts, from its 1 % to its 99 % quantile."""
    seen = []
    for video in clips:
        gaze = model.generate(video, gazing_ratio=gazing_ratio)
        assert gaze.task_loss is not None
        seen.append(gaze.task_loss[gaze.chosen].float().cpu())
    low, high = torch.quantile(torch.cat(seen)[:: max(1, sum(map(len, seen)) // 1_000_000)],
                               torch.tensor([0.01, 0.99])).tolist()
    return torch.linspace(low, high, count).tolist()


def calibrate(model: AutoGaze, judge: Judge, clips: Sequence[Tensor], thresholds: int = 24,
              points: int = 24) -> AutoGaze:
    """Run the trials, fit, and store the result in the model's config; returns the model.

    Args:
        model: trained.
        judge: tells the true losses.
        clips: validation batches (B, T, 3, H, W) float on the model's device.
        thresholds: how many are tried.
        points: how many asked losses are stored.
    """
    trials = run_trials(model, judge, clips, predicted_range(model, clips, thresholds))
    reached = torch.cat([trial.loss for trial in trials])
    if not len(reached):  # the rule never fires: nothing to learn from
        return model.with_calibration(())
    low, high = torch.quantile(reached, torch.tensor([0.02, 0.98])).tolist()
    asked = [round(value, 6) for value in torch.linspace(low, max(high, low + 1e-3), points).tolist()]
    return model.with_calibration(fit_calibration(trials, asked))
