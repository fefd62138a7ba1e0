"""Does the stop rule keep its promise? What was asked, what was reached, and the least that would have done.

A frame *stopped* if it used less than the budget; a stop is *kept* if the true loss is at most 5 % above what was
asked. The least that would have done: in the order in which the model looks when nothing stops it, frame by frame, the
smallest count whose true loss is at most what was asked, given that the frames before stopped at theirs. Example: asked
0.3, and ratio 0.12 on average where 0.11 would have done, is 9 % too much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autogaze.core.gaze import Gaze
from autogaze.model import AutoGaze
from autogaze.pretrain.judge import Judge
from autogaze.pretrain.reconstructor.network import Reconstructor
from autogaze.pretrain.reconstructor.search import attempt, commit, look, start
from autogaze.stop_rule.calibration import LONGEST_RATIO, SLACK

LOOSEST_RATIO = 0.02  # the useful range of requirements ends at the mean loss of this ratio


@dataclass(frozen=True)
class StopCheck:
    """Outcome of asking for one loss; means over all frames of all clips."""

    asked: float
    loss: float  # true loss reached
    stopped: float  # share of frames that stopped by the rule
    kept: float | None  # share of those whose true loss is at most SLACK x asked; None if none stopped
    ratio: float  # share of patches chosen
    smallest_ratio: float  # the least that would have done, by the same order


def check_stops(
    model: AutoGaze,
    judge: Judge,
    clips: Sequence[Tensor],
    asked: Sequence[float],
    smallest_ratios: Sequence[float],
    gazing_ratio: float = LONGEST_RATIO,
) -> list[StopCheck]:
    """Ask for each loss and compare with the truth.

    Args:
        model: with the calibration that is to be checked.
        judge: tells the true losses; its grid must be the model's.
        clips: batches (B, T, 3, H, W) float on the model's device, of at least one clip.
        asked: reconstruction losses.
        smallest_ratios: the least that would have done, one a loss, see `smallest_ratios`.
        gazing_ratio: largest share of a frame's patches.
    """
    budget, patches = model.grid.budget(gazing_ratio), model.grid.patches_per_frame
    checks = []
    for wanted, smallest in zip(asked, smallest_ratios, strict=True):
        gazes = [model.generate(video, gazing_ratio=gazing_ratio, task_loss_requirement=wanted) for video in clips]
        loss = torch.cat([judge.losses(video, gaze) for video, gaze in zip(clips, gazes, strict=True)])
        counts = torch.cat([gaze.counts for gaze in gazes])
        stops = counts < budget
        kept = float((loss[stops] <= SLACK * wanted).float().mean()) if bool(stops.any()) else None
        checks.append(
            StopCheck(
                wanted,
                float(loss.mean()),
                float(stops.float().mean()),
                kept,
                float(counts.float().mean()) / patches,
                smallest,
            )
        )
    return checks


def smallest_ratios(
    model: AutoGaze, judge: Judge, clips: Sequence[Tensor], asked: Sequence[float], gazing_ratio: float = LONGEST_RATIO
) -> list[float]:
    """The mean share of patches that would have done for each asked loss; no calibration changes it.

    Args: as of `check_stops`.
    """
    orders = [model.generate(video, gazing_ratio=gazing_ratio) for video in clips]
    return [
        float(
            torch.cat(
                [
                    smallest_counts(judge.reconstructor, video, order, wanted)
                    for video, order in zip(clips, orders, strict=True)
                ]
            )
            .float()
            .mean()
        )
        / model.grid.patches_per_frame
        for wanted in asked
    ]


@torch.no_grad()
def smallest_counts(reconstructor: Reconstructor, video: Tensor, order: Gaze, asked: float) -> Tensor:
    """(B, T) int64: how many ids of each frame, in their order, bring its loss down to `asked`.

    Found by bisection, which takes the loss to fall along the order; all of a frame's ids where even they do not do.

    Args:
        reconstructor: tells the loss.
        video: (B, T, 3, H, W) float.
        order: gaze of the same clips, chosen slots first in each frame.
        asked: reconstruction loss.
    """
    memory, least = start(reconstructor, len(video)), []
    for t in range(video.shape[1]):
        sight = look(reconstructor, memory, video[:, t])
        low, high = torch.zeros_like(order.counts[:, t]), order.counts[:, t]  # invariant: `high` does, or is all
        while bool((low < high).any()):
            middle = (low + high) // 2
            loss = attempt(reconstructor, sight, _first(order, t, middle)[:, None]).loss[:, 0]
            enough = loss <= asked
            low, high = torch.where(enough, low, (middle + 1).minimum(high)), torch.where(enough, middle, high)
        memory = commit(reconstructor, sight, _first(order, t, high))
        least.append(high)
    return torch.stack(least, dim=1)


def useful_requirements(model: AutoGaze, judge: Judge, clips: Sequence[Tensor], points: int = 8) -> list[float]:
    """Losses worth asking for: from what the longest gaze reaches on average to what LOOSEST_RATIO does, evenly."""
    ends = []
    for ratio in (LONGEST_RATIO, LOOSEST_RATIO):
        losses = [judge.losses(video, model.generate(video, gazing_ratio=ratio)) for video in clips]
        ends.append(float(torch.cat(losses).mean()))
    inner = torch.linspace(min(ends), max(ends), points + 2)[1:-1]  # at the ends nothing is left to decide
    return [round(value, 5) for value in inner.tolist()]


def _first(order: Gaze, t: int, counts: Tensor) -> Tensor:
    """(B, P) bool: the first `counts` ids of frame t."""
    ids, slots = order.ids[:, t], torch.arange(order.ids.shape[-1], device=order.ids.device)
    taken = order.chosen[:, t] & (slots < counts[:, None])
    mask = torch.zeros(len(ids), order.grid.patches_per_frame, dtype=torch.uint8, device=ids.device)
    return mask.scatter_reduce(1, ids.where(taken, 0), taken.to(torch.uint8), "amax").bool()
