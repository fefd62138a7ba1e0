"""Progress of a run, and the learning rate there.

Progress is the larger of steps taken / most steps and minutes spent / most minutes, so a run that is limited by the
clock still decays its learning rate to the end.
"""

from __future__ import annotations

import math


def progress(step: int, max_steps: int, seconds: float = 0.0, max_minutes: float | None = None) -> float:
    """Share of a run that is done, in [0, 1]."""
    by_clock = 0.0 if max_minutes is None else seconds / (60.0 * max_minutes)
    return min(1.0, max(step / max_steps, by_clock))


def learning_rate(peak: float, step: int, done: float, warmup_steps: int, final_share: float) -> float:
    """Linear warm-up over steps, then half a cosine over progress down to `final_share` of the peak."""
    warm = min(1.0, (step + 1) / max(1, warmup_steps))
    decayed = final_share + (1.0 - final_share) * 0.5 * (1.0 + math.cos(math.pi * done))
    return peak * warm * decayed


def linear(start: float, end: float, done: float) -> float:
    """A value that moves from start to end over a run."""
    return start + (end - start) * done
