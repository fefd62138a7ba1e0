"""Requirement mode: the model decides how much to look at, we look at how it decides.

The requirement is the loss of looking at everything plus a slack, either each clip's own or one for all clips (the
mean); and the one that the checkpoint carries as its default. A frame counts as stopped if it used less than the
largest ratio; a stop is kept if the frame's true loss is at most 5 % above the requirement, which is what calibration
promises of nine in ten.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autogaze.core.gaze import Gaze
from autogaze.evaluate.bootstrap import Interval, bootstrap
from autogaze.evaluate.measurement import Evaluator
from autogaze.model import AutoGaze

SLACK = 0.10  # above the dense loss
KEPT = 1.05  # a stop is kept up to this times the requirement
LARGEST_RATIO = 0.75
OWN, COMMON = "dense loss + 10 %, each clip's own", "dense loss + 10 %, one for all"
DEFAULT = "the checkpoint's default"
ALL = "all"  # kind that stands for every clip


@dataclass(frozen=True)
class RequirementRow:
    """One model in requirement mode on the clips of one kind."""

    method: str
    requirement: str  # OWN, COMMON or DEFAULT
    kind: str
    clips: int
    required_loss: float  # mean over the clips
    loss: float  # reached, mean over the clips
    ratio: Interval  # share of patches chosen, mean over the clips
    ratio_spread: float  # standard deviation over the clips
    ratio_low: float  # 10 % and 90 % quantile over the clips
    ratio_high: float
    stopped: float  # share of the frames that stopped before the largest ratio
    kept: float | None  # share of those whose true loss meets the requirement; None if none stopped


def measure_requirement(name: str, model: AutoGaze, evaluator: Evaluator, dense: Tensor) -> list[RequirementRow]:
    """Run a model under each requirement.

    Args:
        name: of the model.
        model: on the grid of the reconstructor.
        evaluator: with the clips.
        dense: (N, T) losses of looking at everything.
    """
    own = dense.mean(1) * (1 + SLACK)
    requirements = {OWN: own, COMMON: own.mean().expand(len(own))}
    if model.config.task_loss_requirement is not None:
        requirements[DEFAULT] = torch.full_like(own, model.config.task_loss_requirement)
    rows = []
    kinds = np.array(evaluator.clips.kinds)
    for label, required in requirements.items():

        def choose(video: Tensor, part: slice, required: Tensor = required) -> Gaze:
            per_frame = required[part, None].expand(video.shape[:2])
            return model.generate(video, gazing_ratio=LARGEST_RATIO, task_loss_requirement=per_frame)

        loss, counts = evaluator.frame_losses(choose)
        for kind in (ALL, *sorted(set(evaluator.clips.kinds))):
            picked = torch.from_numpy((kinds == kind) | (kind == ALL))
            rows.append(_row(name, label, kind, evaluator, required, loss, counts, picked))
    return rows


def _row(
    name: str,
    label: str,
    kind: str,
    evaluator: Evaluator,
    required: Tensor,
    loss: Tensor,
    counts: Tensor,
    picked: Tensor,
) -> RequirementRow:
    required, loss, counts = required[picked], loss[picked], counts[picked]
    grid = evaluator.reconstructor.grid
    stopped = counts < grid.budget(LARGEST_RATIO)
    kept = loss <= KEPT * required[:, None]
    ratio = (counts.double().mean(1) / grid.patches_per_frame).numpy()
    groups = [group for group, keep in zip(evaluator.clips.groups, picked.tolist(), strict=True) if keep]
    return RequirementRow(
        name,
        label,
        kind,
        len(loss),
        float(required.mean()),
        float(loss.mean()),
        bootstrap([ratio], groups),
        float(ratio.std()),
        float(np.quantile(ratio, 0.1)),
        float(np.quantile(ratio, 0.9)),
        float(stopped.float().mean()),
        float(kept[stopped].float().mean()) if bool(stopped.any()) else None,
    )
