"""Summary: from measurements on every clip to means, comparisons and their confidence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from autogaze.evaluate.bootstrap import bootstrap, difference, ratio, way
from autogaze.evaluate.clips import ClipSet
from autogaze.evaluate.measurement import Evaluator, Measurement
from autogaze.evaluate.methods import NETWORK, ORACLE, SELECTOR
from autogaze.evaluate.requirement import RequirementRow
from autogaze.evaluate.results import ClipFact, Comparison, KindRow, Protocol, RatioForLoss, Results, Row, WorstClip

RANDOM = "random"
LOSS_OVER, LOSS_MINUS, WAY = "loss over", "loss minus", "way to the oracle"
OVER_DENSE = (1.1, 1.25, 1.5, 2.0)  # losses to be reached, times the dense loss
WORST = 6  # clips listed


def summarise(
    evaluator: Evaluator,
    data: str,
    sampling: str,
    measurements: Sequence[Measurement],
    dense: torch.Tensor,
    requirements: Sequence[RequirementRow] = (),
) -> Results:
    """Everything that is told about one evaluation.

    Args:
        evaluator: with the clips and the reconstructor.
        data: name of the folder.
        sampling: which frames were taken, in words.
        measurements: of every method at every ratio.
        dense: (N, T) losses of looking at everything.
        requirements: rows of `measure_requirement`.
    """
    clips, grid = evaluator.clips, evaluator.reconstructor.grid
    protocol = Protocol(
        data,
        len(clips),
        len(set(clips.groups)),
        clips.frames.shape[1],
        sampling,
        grid.tile_px,
        grid.patches_per_frame,
        evaluator.reconstructor.config.loss,
        "float32",
        evaluator.seed,
        clips.skipped,
    )
    dense_mean = dense.mean(1).double().numpy()
    facts = tuple(map(ClipFact, clips.names, clips.kinds, clips.groups, dense_mean.tolist()))
    return Results(
        protocol,
        facts,
        tuple(_row(one, clips) for one in measurements),
        tuple(row for one in measurements for row in _kind_rows(one, measurements, clips)),
        tuple(comparisons(measurements, clips)),
        tuple(ratios_for_loss(measurements, float(dense_mean.mean()))),
        tuple(worst_clips(measurements, clips)),
        tuple(requirements),
    )


def comparisons(measurements: Sequence[Measurement], clips: ClipSet) -> list[Comparison]:
    """Networks against random, the best selector at that ratio, the oracle, and one another (later minus earlier)."""
    found = []
    for gazing_ratio in sorted({one.gazing_ratio for one in measurements}):
        at = {one.method: one for one in measurements if one.gazing_ratio == gazing_ratio}
        loss = {name: one.scores.loss for name, one in at.items()}
        selectors = [name for name, one in at.items() if one.sort == SELECTOR]
        networks = [name for name, one in at.items() if one.sort == NETWORK]
        oracles = [name for name, one in at.items() if one.sort == ORACLE]
        best = min(selectors, key=lambda name: loss[name].mean(), default=None)
        for i, name in enumerate(networks):
            for other in dict.fromkeys(other for other in (RANDOM, best) if other in loss):
                found.append(
                    Comparison(
                        LOSS_OVER, name, other, gazing_ratio, bootstrap([loss[name], loss[other]], clips.groups, ratio)
                    )
                )
            for oracle in oracles if RANDOM in loss else ():
                found.append(
                    Comparison(
                        WAY,
                        name,
                        oracle,
                        gazing_ratio,
                        bootstrap([loss[name], loss[RANDOM], loss[oracle]], clips.groups, way),
                    )
                )
            for other in networks[:i]:
                found.append(
                    Comparison(
                        LOSS_MINUS,
                        name,
                        other,
                        gazing_ratio,
                        bootstrap([loss[name], loss[other]], clips.groups, difference),
                    )
                )
    return found


def ratios_for_loss(measurements: Sequence[Measurement], dense: float) -> list[RatioForLoss]:
    """The ratio each method needs for a loss: multiples of the dense loss, and what random reaches."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for one in sorted(measurements, key=lambda one: one.gazing_ratio):
        curves.setdefault(one.method, []).append((float(one.scores.spent.mean()), float(one.scores.loss.mean())))
    targets = [(f"dense loss x {factor:g}", dense * factor) for factor in OVER_DENSE]
    targets += [
        (f"random at {one.gazing_ratio:g}", float(one.scores.loss.mean()))
        for one in measurements
        if one.method == RANDOM
    ]
    return [
        RatioForLoss(name, label, loss, ratio_at(curve, loss), curve[0][1] < loss)
        for label, loss in targets
        for name, curve in curves.items()
    ]


def ratio_at(curve: Sequence[tuple[float, float]], loss: float) -> float | None:
    """The ratio where a curve of (ratio, loss) first comes down to a loss, ascending in ratio; linear in its log."""
    for (ratio_a, loss_a), (ratio_b, loss_b) in zip(curve, curve[1:], strict=False):
        if loss_a <= loss:
            return ratio_a
        if loss_b <= loss:
            share = (loss_a - loss) / (loss_a - loss_b)
            return float(np.exp(np.log(ratio_a) + share * (np.log(ratio_b) - np.log(ratio_a))))
    return curve[-1][0] if curve and curve[-1][1] <= loss else None


def worst_clips(measurements: Sequence[Measurement], clips: ClipSet) -> list[WorstClip]:
    """The clips on which the last network gains least over random, at the ratio nearest 0.1."""
    networks = [one for one in measurements if one.sort == NETWORK]
    if not networks:
        return []
    name = networks[-1].method
    ours = min((one for one in networks if one.method == name), key=lambda one: abs(one.gazing_ratio - 0.1))
    other = next((one for one in measurements if (one.method, one.gazing_ratio) == (RANDOM, ours.gazing_ratio)), None)
    if other is None:
        return []
    over = ours.scores.loss / other.scores.loss
    return [
        WorstClip(name, ours.gazing_ratio, clips.names[i], clips.kinds[i], float(ours.scores.loss[i]), float(over[i]))
        for i in np.argsort(-over)[:WORST]
    ]


def _row(one: Measurement, clips: ClipSet) -> Row:
    scores = one.scores
    loss, decibels, similarity, paste_decibels, paste_similarity = (
        bootstrap([column], clips.groups)
        for column in (scores.loss, scores.psnr, scores.ssim, scores.paste_psnr, scores.paste_ssim)
    )
    return Row(
        one.method,
        one.sort,
        one.gazing_ratio,
        float(scores.spent.mean()),
        loss,
        decibels,
        similarity,
        paste_decibels,
        paste_similarity,
        tuple(scores.loss.tolist()),
    )


def _kind_rows(one: Measurement, measurements: Sequence[Measurement], clips: ClipSet) -> list[KindRow]:
    other = next((m for m in measurements if (m.method, m.gazing_ratio) == (RANDOM, one.gazing_ratio)), None)
    rows, kinds = [], np.array(clips.kinds)
    for kind in sorted(set(clips.kinds)):
        picked = kinds == kind
        groups = [group for group, keep in zip(clips.groups, picked, strict=True) if keep]
        loss = one.scores.loss[picked]
        over = None if other is None else bootstrap([loss, other.scores.loss[picked]], groups, difference)
        rows.append(KindRow(one.method, one.gazing_ratio, kind, int(picked.sum()), bootstrap([loss], groups), over))
    return rows
