"""Calibration of the stop rule: a user who asks for a loss of 0.3 gets a loss of 0.3.

The stop rule compares a *predicted* loss with what was asked. On validation clips the model is run at many
thresholds, and the judge tells the true loss of every frame that stopped. What a threshold is good for is the loss that
90 % of the frames of *new* videos stay below. Frames of one source (a camera, a scene) err together, so that it is
sources that are counted and not frames: the share is raised to 90 % x (n + 1) / n for n sources, each of which
weighs the same, which is what exchangeable sources need (hierarchical split conformal prediction, Dunn et al. 2022,
arXiv:1809.07441; Lee et al. 2023, arXiv:2306.06342). With 16 sources that is 95.6 %; with fewer than nine nothing can
be promised, and every stop has to be good. That holds on average over new sources; so that it holds for nearly every
set of a few of them, such as the videos of one user, sets are drawn with replacement, and of what every one finds safe
an upper quantile is taken (Efron 1979, the bootstrap). One threshold alone looks good or bad by the luck of few
sources, and a high one by frames that are done at once, far below it. So what counts is by which factor losses exceed
what was predicted when a frame stopped, over all stops predicted near the threshold. The promise has to hold for every
way of taking frames from a video that was tried (spread over it, neighbouring), not for their mixture: the worst
counts.

The pairs (asked, threshold) are stored in `AutoGazeConfig.calibration` and applied by every way of decoding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from autogaze.core.gaze import Gaze
from autogaze.model import AutoGaze
from autogaze.pretrain.judge import AnyJudge

SHARE = 0.9  # of the frames that stop in new videos must be good enough
CONFIDENCE, DRAWS = 0.95, 400  # that quantile, and how many draws it is one of
DRAWN = 8  # sources of a draw; as many as there are where they are fewer
SLACK = 1.05  # a frame is good enough up to this times the asked loss
NEAR = 1.5  # predictions up to so many times larger or smaller err alike
FEWEST_FRAMES = 8  # stops near a threshold that make it count
LEAST_THRESHOLD = 1e-3  # of those that are tried: an untrained head may predict less than nothing
LONGEST_RATIO = 0.75  # frames that have not stopped here have not stopped


@dataclass(frozen=True, eq=False)
class Sampling:
    """Validation clips, all taken from their videos in one way."""

    clips: list[Tensor]  # batches (B, T, 3, H, W) float on the model's device
    sources: list[str]  # what each clip was cut from, over all batches: clips of one source err together

    def __post_init__(self) -> None:
        if len(self.sources) != sum(map(len, self.clips)):
            raise ValueError(
                f"need the source of every clip: got {len(self.sources)} for {sum(map(len, self.clips))} clips"
            )


@dataclass(frozen=True, eq=False)
class Trial:
    """Outcome of stopping at one threshold."""

    threshold: float  # on the predicted loss
    loss: Tensor  # (N,) float, true loss of the frames that stopped by the rule
    source: Tensor  # (N,) int64, which source each of them comes from
    predicted: Tensor  # (N,) float, the loss predicted when each stopped, at most the threshold


def fit_calibration(
    samplings: Sequence[Sequence[Trial]], share: float = SHARE, slack: float = SLACK
) -> tuple[tuple[float, float], ...]:
    """The threshold that each asked loss needs.

    Args:
        samplings: trials of each way of taking frames, at the same ascending thresholds.
        share: of the stopped frames of new sources that must be good enough.
        slack: a frame is good enough up to slack x asked.

    Returns:
        (asked, threshold) pairs, both strictly ascending: a threshold serves a loss if it and every lower one does.
    """
    pairs: list[tuple[float, float]] = []
    for trials in zip(*samplings, strict=True):
        threshold = trials[0].threshold
        factors = [_safe_factor(of_sampling, threshold, share) for of_sampling in samplings]
        known = [factor for factor in factors if factor is not None]
        if not known:
            continue
        asked = round(max(known) * threshold / slack, 6)
        if pairs and asked <= pairs[-1][0]:  # no worse than the one before: it takes its place
            asked, _ = pairs.pop()
        pairs.append((asked, trials[0].threshold))
    return tuple(pairs)


def _safe_factor(trials: Sequence[Trial], threshold: float, share: float) -> float | None:
    """The factor of the prediction that losses stay below where it is near a threshold; where that is too seldom, of
    thresholds near by; None: too few frames stop at those too."""
    stops = [
        (
            trial.loss.double(),
            trial.source,
            trial.predicted.double(),
            torch.full_like(trial.predicted, trial.threshold, dtype=torch.float64),
        )
        for trial in trials
    ]
    loss, source, *references = (torch.cat(parts) for parts in zip(*stops, strict=True))
    for reference in references:
        near = (threshold / NEAR <= reference) & (reference <= threshold * NEAR)
        if int(near.sum()) >= FEWEST_FRAMES:
            return safe_loss(loss[near] / reference[near], source[near], share)
    return None


def safe_loss(loss: Tensor, source: Tensor, share: float, confidence: float = CONFIDENCE) -> float:
    """The loss that a share of the frames of new sources stays below, by the finite-sample quantile over sources.

    Args:
        loss: (N,) float, N >= 1.
        source: (N,) int64, the source of each.
        share: in (0, 1).
        confidence: in (0, 1), share of the sets of sources for which that holds.
    """
    _, index, counts = source.unique(return_inverse=True, return_counts=True)
    sources = len(counts)
    level, size = share * (sources + 1) / sources, min(sources, DRAWN)
    drawn = torch.randint(sources, (DRAWS, size), generator=torch.Generator().manual_seed(0))
    weight = torch.zeros(DRAWS, sources, dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn).double())
    ordered, order = loss.double().sort()
    below = (weight / (size * counts))[:, index[order]].cumsum(1)  # mean over sources of the share up to here
    safe = ordered[(below < level - 1e-9).sum(1).clamp(max=len(ordered) - 1)]
    return float(safe.quantile(confidence, interpolation="higher"))


def run_trials(
    model: AutoGaze,
    judge: AnyJudge,
    sampling: Sampling,
    thresholds: Sequence[float],
    gazing_ratio: float = LONGEST_RATIO,
) -> list[Trial]:
    """Gaze at clips with every threshold (the model's own calibration is not applied).

    Args:
        model: to be calibrated.
        judge: tells the true losses.
        sampling: of at least one clip.
        thresholds: on the predicted loss, ascending.
        gazing_ratio: largest share of a frame's patches.
    """
    clips, sources = sampling.clips, sampling.sources
    budget, frames = model.grid.budget(gazing_ratio), [video.shape[1] for video in clips for _ in video]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(sources))}
    source = torch.tensor([numbers[name] for name in sources]).repeat_interleave(torch.tensor(frames))
    kept, trials = model.config.calibration, []
    model.config = replace(model.config, calibration=())
    try:
        for threshold in thresholds:
            gazes = [
                model.generate(video, gazing_ratio=gazing_ratio, task_loss_requirement=threshold) for video in clips
            ]
            loss = torch.cat(
                [judge.losses(video, gaze).flatten().cpu() for video, gaze in zip(clips, gazes, strict=True)]
            )
            stopped = torch.cat([(gaze.counts < budget).flatten().cpu() for gaze in gazes])
            predicted = torch.cat([_predicted(gaze).flatten().cpu() for gaze in gazes])
            trials.append(Trial(threshold, loss[stopped], source[stopped], predicted[stopped]))
    finally:
        model.config = replace(model.config, calibration=kept)
    return trials


def _predicted(gaze: Gaze) -> Tensor:
    """(B, T) the loss predicted when each frame stopped, before the first id that was left out; of frames that the
    budget ended, minus infinity."""
    assert gaze.task_loss is not None
    left_out = ~gaze.chosen & ~gaze.task_loss.isnan()
    return gaze.task_loss.where(left_out, -torch.inf).amax(-1)


def predicted_range(
    model: AutoGaze, clips: Sequence[Tensor], count: int, gazing_ratio: float = LONGEST_RATIO
) -> list[float]:
    """`count` thresholds that cover what the model predicts while it looks, from the 5 % quantile of what frames end
    with to the 95 % quantile of what they begin with; each as many times the one before, as errors count as shares."""
    ends, starts = [], []
    for video in clips:
        lowest, highest = _extremes(model.generate(video, gazing_ratio=gazing_ratio))
        ends.append(lowest)
        starts.append(highest)
    low, high = float(torch.cat(ends).quantile(0.05)), float(torch.cat(starts).quantile(0.95))
    low = max(low, LEAST_THRESHOLD)
    return torch.logspace(math.log10(low), math.log10(max(high, low + 1e-3)), count, dtype=torch.float64).tolist()


def _extremes(gaze: Gaze) -> tuple[Tensor, Tensor]:
    """Lowest and highest prediction of every frame (N,)."""
    assert gaze.task_loss is not None
    loss = gaze.task_loss.float().cpu()
    chosen, looked = gaze.chosen.cpu(), gaze.counts.flatten().cpu() > 0
    return (
        loss.masked_fill(~chosen, torch.inf).amin(-1).flatten()[looked],
        loss.masked_fill(~chosen, -torch.inf).amax(-1).flatten()[looked],
    )


def calibrate(model: AutoGaze, judge: AnyJudge, samplings: Sequence[Sampling], thresholds: int = 16) -> AutoGaze:
    """Run the trials, fit, and store the result in the model's config; returns the model.

    Args:
        model: trained.
        judge: tells the true losses.
        samplings: ways of taking frames from the validation videos, each of which the rule has to hold for.
        thresholds: how many are tried.
    """
    tried = predicted_range(model, [video for sampling in samplings for video in sampling.clips], thresholds)
    trials = [run_trials(model, judge, sampling, tried) for sampling in samplings]
    model.config = replace(model.config, calibration=fit_calibration(trials))  # none if the rule never fires
    return model
