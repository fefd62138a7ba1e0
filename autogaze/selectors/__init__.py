"""Selectors: what one would use instead of a trained gaze, behind the same call.

    select = make_selector("difference", grid)
    gaze = select(video, 0.1)          # (B, T, 3, H, W) float -> Gaze

None of them is trained. The greedy oracle needs a reconstructor and lives in `autogaze.evaluate.methods`.
"""

from __future__ import annotations

from autogaze.core.grid import PatchGrid
from autogaze.selectors.change import DissimilaritySelector, PyramidSelector, RunLengthSelector
from autogaze.selectors.difference import DenoisedDifferenceSelector, DifferenceSelector
from autogaze.selectors.features import GradientSelector
from autogaze.selectors.fixed import CoarseSelector, FirstFrameSelector, RandomSelector
from autogaze.selectors.flow import FlowSelector
from autogaze.selectors.quadtree import QuadTreeSelector
from autogaze.selectors.ranking import Selector
from autogaze.selectors.shots import ShotSelector
from autogaze.selectors.signature import SignatureSelector

SELECTORS: dict[str, type] = {
    "random": RandomSelector,
    "coarse": CoarseSelector,
    "first-frame": FirstFrameSelector,
    "difference": DifferenceSelector,
    "difference-denoised": DenoisedDifferenceSelector,
    "flow": FlowSelector,
    "rlt": RunLengthSelector,
    "quadtree": QuadTreeSelector,
    "gradient": GradientSelector,
    "signature": SignatureSelector,
    "evs": DissimilaritySelector,
    "shots": ShotSelector,
    "pyramid": PyramidSelector,
}

__all__ = ["SELECTORS", "Selector", "make_selector"]


def make_selector(name: str, grid: PatchGrid) -> Selector:
    """A selector by name.

    Raises:
        ValueError: if there is none of that name.
    """
    if name not in SELECTORS:
        raise ValueError(f"no selector {name!r}; there are {', '.join(SELECTORS)}")
    return SELECTORS[name](grid)
