"""The predicted loss of a trained model, fitted by least squares: what is lost after any number of patches.

Training teaches it at the ends of the budgets that it draws, and GRPO moves the states that the published loss head
reads. But the stop rule asks for it after every id, the first one too, where a wrong "enough" costs most. Here the
model looks at clips with budgets of one patch to what a frame holds, the judge tells what each frame lost, and only
what the prediction is made of is fitted to that: the loss head, or the weights of the residual map where a model has
it. Both are linear maps (the residual map piece by piece), so there is no step size. Errors count as shares of the
loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from autogaze.core.gaze import Gaze
from autogaze.decoding.scoring import loss_states
from autogaze.model import AutoGaze
from autogaze.network.residual import NEVER, STALE_CAP, STALE_FLOOR, ResidualMap, residual_at_level
from autogaze.pretrain.judge import AnyJudge
from autogaze.pretrain.module import last_chosen
from autogaze.pretrain.ntp import LEAST_LOSS
from autogaze.stop_rule.calibration import LONGEST_RATIO

PIECES = 4  # times that it is settled which places count as held: weights decide that, and it the weights
ROUNDS, LEAST_SHARE = 30, 1e-3  # of weighing squares anew; no sample weighs more than one with this share of error
RIDGE = 5e-3  # how much the head that there was counts, as a share of what the samples say


@dataclass(frozen=True)
class HeadFit:
    """Outcome of a fit; mean errors on the samples it was fitted to, as shares of the true loss."""

    samples: int
    before: float
    after: float


@torch.no_grad()
def fit_loss_head(model: AutoGaze, judge: AnyJudge, clips: Iterable[Tensor], seed: int = 0) -> HeadFit:
    """Fit what the predicted loss is made of in place; nothing else of the model changes.

    Args:
        model: trained, in float32.
        judge: tells the true losses.
        clips: batches (B, T, 3, H, W) float on the model's device; of at least one clip.
        seed: of the budgets.
    """
    gazes = _gazes(model, clips, torch.Generator().manual_seed(seed))
    if model.residual_map is not None:
        return _fit_residual_map(model, model.residual_map, judge, gazes)
    found = [_states(model, judge, video, gaze) for video, gaze in gazes]
    states, heads, truth = (torch.cat(parts) for parts in zip(*found, strict=True))
    weight = model.gaze_decoder.task_loss_prediction_head.weight
    before = _error((states * weight[heads]).sum(-1), truth)
    for head in range(len(weight)):
        mine = heads == head
        weight[head] = _solve(states[mine], truth[mine], weight[head])
    return HeadFit(len(truth), before, _error((states * weight[heads]).sum(-1), truth))


def _gazes(model: AutoGaze, clips: Iterable[Tensor], generator: torch.Generator) -> Iterator[tuple[Tensor, Gaze]]:
    """Clips and gazes at them, of one patch to what a frame holds, few as often as many."""
    most = math.log(model.grid.budget(LONGEST_RATIO))
    for video in clips:
        counts = (torch.rand(video.shape[:2], generator=generator, dtype=torch.float64) * most).exp().floor()
        ratio = ((counts + 0.5) / model.grid.patches_per_frame).clamp(max=1)
        yield video, model.generate(video, gazing_ratio=ratio.to(video.device))


def _states(model: AutoGaze, judge: AnyJudge, video: Tensor, gaze: Gaze) -> tuple[Tensor, Tensor, Tensor]:
    """States at the end of each frame's gaze (N, width), the head's row that reads them (N,), and true losses (N,)."""
    states, heads = loss_states(model, video, gaze)
    last = last_chosen(gaze.chosen)
    return states[last], heads.expand(last.shape)[last], judge.losses(video, gaze)[last.any(-1)]


def _fit_residual_map(
    model: AutoGaze, rule: ResidualMap, judge: AnyJudge, gazes: Iterable[tuple[Tensor, Gaze]]
) -> HeadFit:
    """Fit the weights of errors, with the places in turn that count as held. Of a perceptual map, whose weights decide
    what is chosen, only the unit: all its factors are multiplied by one number."""
    if rule.response is not None:
        return _fit_unit(model, rule, judge, gazes)
    found = [(*_errors_left(rule, model, video, gaze), judge.losses(video, gaze).flatten()) for video, gaze in gazes]
    now, least, truth = (torch.cat(parts) for parts in zip(*found, strict=True))
    before = _error((_counted(now, least, rule.weight) * rule.weight).sum(-1), truth)
    for _ in range(PIECES):
        rule.weight.copy_(_solve_positive(_counted(now, least, rule.weight), truth, rule.weight))
    return HeadFit(len(truth), before, _error((_counted(now, least, rule.weight) * rule.weight).sum(-1), truth))


def _fit_unit(model: AutoGaze, rule: ResidualMap, judge: AnyJudge, gazes: Iterable[tuple[Tensor, Gaze]]) -> HeadFit:
    """Multiply the factors of a perceptual map so that the median frame's loss is predicted right."""
    assert rule.response is not None
    found = []
    for video, gaze in gazes:
        visual, grey = model.embed(video)[0]
        assert grey is not None
        predicted = rule.along(grey, gaze.ids, gaze.chosen, visual)[1][last_chosen(gaze.chosen)]
        found.append((predicted, judge.losses(video, gaze)[gaze.chosen.any(-1)]))
    predicted, truth = (torch.cat(parts) for parts in zip(*found, strict=True))
    unit = (truth.clamp(min=LEAST_LOSS).log() - predicted.clamp(min=1e-6).log()).median().exp()
    rule.response[3:] *= unit
    return HeadFit(len(truth), _error(predicted, truth), _error(predicted * unit, truth))


def _errors_left(rule: ResidualMap, model: AutoGaze, video: Tensor, gaze: Gaze) -> tuple[Tensor, Tensor]:
    """Features (B * T, N, 2) of what is wrong with places after gazes, and of the least that counts."""
    grey = model.embed(video)[0].grey
    assert grey is not None
    features = rule.features_along(grey, gaze.ids, gaze.chosen)  # (B, T, N, scales + 1, 2)
    level = rule.levels(gaze.ids, gaze.chosen).amax(-2)
    now = torch.stack([residual_at_level(feature, level) for feature in features.unbind(-1)], dim=-1)
    least = STALE_FLOOR * features[..., -2, :] * (level == NEVER)[..., None]
    return now.flatten(0, 1), least.flatten(0, 1)


def _counted(now: Tensor, least: Tensor, weight: Tensor) -> Tensor:
    """Features (N, 2) whose weighted sum is the predicted loss, as `autogaze.network.residual.told` has it."""
    share, own = ((part * weight).sum(-1, keepdim=True) for part in (least, now))
    most = torch.where(share > STALE_CAP * own, STALE_CAP * now, least)
    return torch.where(share > own, most, now).mean(1)


def _solve_positive(states: Tensor, truth: Tensor, start: Tensor) -> Tensor:
    """The weights, none below zero, with the least mean share of error, by squares that are weighed anew: squares alone
    would let the frames decide of which hardly anything is left to be seen, and whose shares are large."""
    weight = 1 / truth.double().clamp(min=LEAST_LOSS)
    rows, goal, found = states.double() * weight[:, None], truth.double() * weight, start.double()
    for _ in range(ROUNDS):
        root = (rows @ found - goal).abs().clamp(min=LEAST_SHARE).rsqrt()
        found = _least_squares(rows * root[:, None], goal * root)
    return found.to(start.dtype)


def _least_squares(rows: Tensor, goal: Tensor) -> Tensor:
    """Of two weights, none below zero: as both come out, or the better of either alone."""
    both = torch.linalg.lstsq(rows, goal[:, None]).solution[:, 0]
    if bool((both >= 0).all()):
        return both
    alone = torch.diag((rows * goal[:, None]).sum(0).clamp(min=0) / rows.square().sum(0).clamp(min=1e-12))
    return alone[(rows @ alone.T - goal[:, None]).square().sum(0).argmin()]


def _solve(states: Tensor, truth: Tensor, start: Tensor) -> Tensor:
    """The weights (width,) that tell losses (N,) from states (N, width) with the least squared share of error."""
    if not len(truth):
        return start
    weight = 1 / truth.double().clamp(min=LEAST_LOSS)
    rows = states.double() * weight[:, None]
    gram = rows.T @ rows
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(gram + ridge, rows.T @ (truth.double() * weight) + ridge @ start.double()).to(start.dtype)


def _error(predicted: Tensor, truth: Tensor) -> float:
    return float(((predicted - truth).abs() / truth.clamp(min=LEAST_LOSS)).mean())
