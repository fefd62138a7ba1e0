"""From distances of features on every clip to means, comparisons and their confidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autogaze.evaluate.bootstrap import Interval, bootstrap, difference, ratio
from autogaze.evaluate.clips import ClipSet
from autogaze.evaluate.features import PASTED, FeatureScores

EVERYTHING, REFERENCE = "all patches", "reference"  # method and sort of looking at everything
BASELINE = "difference"  # what every method is compared with
RATIO, MINUS = "over", "minus"  # figures of a comparison
ALL = "all"  # kind that stands for every clip


@dataclass(frozen=True)
class FeatureRow:
    """Mean distance of one method's pictures from the true frames, as one ViT sees them."""

    viewer: str  # the ViT
    disturbance: str  # "clean", or what was done to the clips
    method: str
    sort: str  # network, selector, oracle or reference
    gazing_ratio: float  # asked
    picture: str  # pasted or rebuilt
    patch: Interval  # 1 - cosine, mean over patch tokens
    pooled: Interval  # 1 - cosine of the pooled feature
    clip_patch: tuple[float, ...]  # in the order of the clips


@dataclass(frozen=True)
class FeatureComparison:
    """The patch tokens' distance of the pasted picture, of one method against another at equal ratio."""

    viewer: str
    disturbance: str
    figure: str  # "over" or "minus"
    method: str
    against: str
    gazing_ratio: float
    kind: str  # of clips, or "all"
    clips: int
    interval: Interval


def summarise_features(scores: Sequence[FeatureScores], clips: ClipSet) -> dict[str, Any]:
    """The fields `features` and `feature_comparisons` of `Results`."""
    rows = tuple(
        FeatureRow(
            one.viewer,
            one.disturbance,
            one.method,
            one.sort,
            one.gazing_ratio,
            one.picture,
            bootstrap([one.patch], clips.groups),
            bootstrap([one.pooled], clips.groups),
            tuple(one.patch.tolist()),
        )
        for one in scores
    )
    return {"features": rows, "feature_comparisons": tuple(_comparisons(scores, clips))}


def _comparisons(scores: Sequence[FeatureScores], clips: ClipSet) -> list[FeatureComparison]:
    """Every method over difference, on all clips and on each kind; a later network over and minus an earlier one."""
    found, kinds = [], np.array(clips.kinds)
    pasted = [one for one in scores if one.picture == PASTED]
    cases = dict.fromkeys((one.viewer, one.disturbance, one.gazing_ratio) for one in pasted)
    for case in cases:
        at = {one.method: one for one in pasted if (one.viewer, one.disturbance, one.gazing_ratio) == case}
        networks = [one.method for one in at.values() if one.sort == "network"]
        pairs = [(RATIO, name, BASELINE) for name in at if name != BASELINE and BASELINE in at]
        for i, name in enumerate(networks):
            pairs += [(figure, name, other) for other in networks[:i] for figure in (RATIO, MINUS)]
        for figure, name, other in pairs:
            for kind in (ALL, *sorted(set(clips.kinds))):
                picked = (kinds == kind) | (kind == ALL)
                groups = [group for group, keep in zip(clips.groups, picked, strict=True) if keep]
                columns = [at[name].patch[picked], at[other].patch[picked]]
                interval = bootstrap(columns, groups, ratio if figure == RATIO else difference)
                found.append(
                    FeatureComparison(case[0], case[1], figure, name, other, case[2], kind, int(picked.sum()), interval)
                )
    return found
