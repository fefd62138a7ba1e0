"""Evaluation: every method at every ratio on the same clips, judged by the same reconstructor and the same ViTs."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from autogaze.checkpoint import SHIPPED, SHIPPED_RECONSTRUCTOR
from autogaze.evaluate.clips import ClipSet
from autogaze.evaluate.disturbances import CLEAN, DISTURBANCES, check_disturbances, disturbed
from autogaze.evaluate.feature_summary import EVERYTHING, REFERENCE, summarise_features
from autogaze.evaluate.features import FeatureEvaluator, FeatureScores, Viewer
from autogaze.evaluate.measurement import Evaluator
from autogaze.evaluate.methods import NETWORK, ORACLE, Method, parse_label
from autogaze.evaluate.requirement import measure_requirement
from autogaze.evaluate.results import Results
from autogaze.evaluate.summary import summarise
from autogaze.pretrain.distance import FeatureDistance
from autogaze.pretrain.reconstructor.network import Reconstructor
from autogaze.vit.load import load_vit

RATIOS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
ORACLE_RATIOS = (0.05, 0.1)  # the greedy search costs as much as everything else together


@dataclass(frozen=True)
class Plan:
    """Settings of an evaluation."""

    ratios: tuple[float, ...] = RATIOS
    oracle_ratios: tuple[float, ...] = ORACLE_RATIOS  # those of `ratios` at which the oracle runs too
    disturbances: tuple[str, ...] = ()  # in which pictures are judged by features too
    disturbed_ratios: tuple[float, ...] = ORACLE_RATIOS
    requirement: bool = False  # also let the networks decide how much to look at
    data: str = ""  # name of the folder, for the record
    sampling: str = "evenly over the clip"  # which frames were taken, for the record

    def __post_init__(self) -> None:
        if not self.ratios or not all(0 < ratio <= 1 for ratio in self.ratios):
            raise ValueError(f"ratios must be in (0, 1], got {self.ratios}")
        check_disturbances(self.disturbances)


def evaluate(methods: Sequence[Method], evaluator: Evaluator, plan: Plan, viewers: Sequence[Viewer] = ()) -> Results:
    """Measure every method; progress goes to stderr.

    Args:
        methods: under test.
        evaluator: judges by reconstruction.
        plan: what is measured.
        viewers: ViTs that judge too; the first one is told of in comparisons.
    """
    dense = evaluator.dense_losses()
    measurements, features = [], []
    viewers = [viewer.of_range(evaluator.clips.preprocessor) for viewer in viewers]
    seen = _feature_evaluator(evaluator, viewers, CLEAN, evaluator.clips) if viewers else None
    for method in methods:
        begun = time.perf_counter()
        ratios = plan.ratios if method.sort != ORACLE else [r for r in plan.ratios if r in plan.oracle_ratios]
        for ratio in ratios:
            gazes = evaluator.gazes(method, ratio)
            measurements.append(evaluator.judge(method, ratio, gazes))
            if seen is not None:
                features += seen.score(method.name, method.sort, ratio, gazes)
        _say(f"{method.name}: {len(ratios)} ratios, {time.perf_counter() - begun:.1f} s")
    for name in plan.disturbances if viewers else ():
        begun = time.perf_counter()
        features += _measure_disturbed(methods, evaluator, plan, viewers, name)
        _say(f"{name}: {len(plan.disturbed_ratios)} ratios, {time.perf_counter() - begun:.1f} s")
    requirements = []
    for method in methods if plan.requirement else ():
        if method.sort == NETWORK and method.model is not None and method.model.grid == evaluator.reconstructor.grid:
            requirements += measure_requirement(method.name, method.model, evaluator, dense)
            _say(f"{method.name}: requirement mode")
    results = summarise(evaluator, plan.data, plan.sampling, measurements, dense, requirements)
    return replace(results, **summarise_features(features, evaluator.clips)) if features else results


def _measure_disturbed(
    methods: Sequence[Method], evaluator: Evaluator, plan: Plan, viewers: Sequence[Viewer], name: str
) -> list[FeatureScores]:
    """Every method that sees pixels and is no oracle, and all patches, on disturbed clips."""
    clips = disturbed(evaluator.clips, name, evaluator.seed)
    seen = _feature_evaluator(evaluator, viewers, name, clips)
    found = []
    for method in methods:
        for ratio in plan.disturbed_ratios if method.sort != ORACLE and method.choose_files is None else ():
            gazes = method.gazes(clips, evaluator.batch, evaluator.device, ratio, evaluator.seed)
            found += seen.score(method.name, method.sort, ratio, gazes)
    everything = {part.start: evaluator.everything(video) for part, video in clips.batches(seen.batch, seen.device)}
    return found + seen.score(EVERYTHING, REFERENCE, 1.0, everything)


def _feature_evaluator(
    evaluator: Evaluator, viewers: Sequence[Viewer], disturbance: str, clips: ClipSet
) -> FeatureEvaluator:
    clean = disturbance == CLEAN
    truth = evaluator.clips if clean or DISTURBANCES[disturbance].against_clean else clips
    reconstructor = evaluator.reconstructor if clean else None
    return FeatureEvaluator(viewers, clips, truth, disturbance, reconstructor, evaluator.device, evaluator.batch)


def load_viewers(names: Sequence[str], device: torch.device | str) -> list[Viewer]:
    """ViTs that judge.

    Args:
        names: each a hub id, a folder or a timm name, optionally as label=name.
        device: where they run.

    Raises:
        FileNotFoundError: if there is no such model.
        ImportError: if its library is not installed.
        ValueError: if two have the same label.
    """
    labelled = [parse_label(name) for name in names]
    if len({label for label, _ in labelled}) < len(labelled):
        raise ValueError(f"every ViT needs its own name, got {', '.join(names)}; use --features LABEL=MODEL")
    return [Viewer(label, FeatureDistance(load_vit(name, device))) for label, name in labelled]


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
