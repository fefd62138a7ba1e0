"""Bootstrap: how far a figure would move if other clips had been filmed.

Sources are resampled, not clips: four clips cut from one film say little more than one of them. Every figure is a
function of means over clips, so one resampling of all columns keeps comparisons paired.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

RESAMPLES = 4000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A figure with its confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(
    columns: Sequence[np.ndarray],
    groups: Sequence[str] | None = None,
    statistic: Callable[[np.ndarray], np.ndarray] = lambda means: means[..., 0],
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Percentile interval of a function of means over clips.

    Args:
        columns: one or more (N,) arrays, a value a clip.
        groups: source of each clip; None: every clip is its own.
        statistic: takes means (..., columns) and returns (...); by default the first column's mean.
        resamples: how many times sources are drawn.
        level: probability that the interval should cover.
        seed: of the draws; the same seed gives the same interval.

    Raises:
        ValueError: if there are no clips, or columns differ in length.
    """
    values = np.stack([np.asarray(column, dtype=np.float64) for column in columns], axis=-1)
    if not len(values):
        raise ValueError("bootstrap needs at least one clip")
    weights = _weights(tuple(map(str, range(len(values)) if groups is None else groups)), resamples, seed)
    means = weights @ values / weights.sum(-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = statistic(means)
    low, high = np.nanquantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(statistic(values.mean(0))), float(low), float(high))


def ratio(means: np.ndarray) -> np.ndarray:
    """First column over second."""
    return means[..., 0] / means[..., 1]


def difference(means: np.ndarray) -> np.ndarray:
    """First column minus second."""
    return means[..., 0] - means[..., 1]


def way(means: np.ndarray) -> np.ndarray:
    """Position of the first column on the way from the second (0) to the third (1)."""
    return (means[..., 1] - means[..., 0]) / (means[..., 1] - means[..., 2])


@lru_cache(maxsize=32)
def _weights(groups: tuple[str, ...], resamples: int, seed: int) -> np.ndarray:
    """(resamples, N): how often each clip is in when as many sources as there are get drawn."""
    _, source = np.unique(np.asarray(groups), return_inverse=True)
    sources = int(source.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(sources, np.full(sources, 1 / sources), size=resamples)
    return drawn[:, source].astype(np.float64)
