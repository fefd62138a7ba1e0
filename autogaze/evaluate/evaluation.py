"""Evaluation: every method at every ratio on the same clips, judged by the same reconstructor."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autogaze.checkpoint import SHIPPED
from autogaze.evaluate.measurement import Evaluator
from autogaze.evaluate.methods import NETWORK, ORACLE, Method
from autogaze.evaluate.requirement import measure_requirement
from autogaze.evaluate.results import Results
from autogaze.evaluate.summary import summarise
from autogaze.pretrain.reconstructor.network import Reconstructor

RATIOS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
ORACLE_RATIOS = (0.05, 0.1)  # the greedy search costs as much as everything else together
SHIPPED_RECONSTRUCTOR = "autogaze-reconstructor"


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    ratios: tuple[float, ...] = RATIOS
    oracle_ratios: tuple[float, ...] = ORACLE_RATIOS  # those of `ratios` at which the oracle runs too
    requirement: bool = False  # also let the networks decide how much to look at
    data: str = ""  # name of the folder, for the record
    sampling: str = "evenly over the clip"  # which frames were taken, for the record

    def __post_init__(self) -> None:
        if not self.ratios or not all(0 < ratio <= 1 for ratio in self.ratios):
            raise ValueError(f"ratios must be in (0, 1], got {self.ratios}")


def evaluate(methods: Sequence[Method], evaluator: Evaluator, plan: Plan) -> Results:
    """Measure every method; progress goes to stderr."""
    dense = evaluator.dense_losses()
    measurements = []
    for method in methods:
        begun = time.perf_counter()
        ratios = plan.ratios if method.sort != ORACLE else [r for r in plan.ratios if r in plan.oracle_ratios]
        measurements += [evaluator.measure(method, ratio) for ratio in ratios]
        _say(f"{method.name}: {len(ratios)} ratios, {time.perf_counter() - begun:.1f} s")
    requirements = []
    for method in methods if plan.requirement else ():
        if method.sort == NETWORK and method.model is not None and method.model.grid == evaluator.reconstructor.grid:
            requirements += measure_requirement(method.name, method.model, evaluator, dense)
            _say(f"{method.name}: requirement mode")
    return summarise(evaluator, plan.data, plan.sampling, measurements, dense, requirements)


def load_reconstructor(name: str | Path | None = None) -> Reconstructor:
    """A reconstructor from a folder, or the shipped one.

    Raises:
        FileNotFoundError: if there is none.
    """
    folder = Path(name) if name is not None else SHIPPED / SHIPPED_RECONSTRUCTOR
    if not folder.is_dir() and (SHIPPED / folder.name).is_dir():
        folder = SHIPPED / folder.name
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no reconstructor {name or SHIPPED_RECONSTRUCTOR}: nothing judges the gaze; "
            "make one with `autogaze train --stage reconstructor` and pass its folder"
        )
    return Reconstructor.from_pretrained(folder)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
