"""Limits that a caller asks for: one rule for every entry point, and the checks of what is given.

Where neither a ratio nor a requirement is given, both are the model's own (`config`). Where one is given, the other
sets no limit. `None` is a given value: no limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from autogaze.network.config import AutoGazeConfig

Default = Literal["default"]
DEFAULT: Default = "default"
# A number, per frame (T,), per clip (B, 1), or both (B, T). A list is an array: only its shape matters.
PerFrame = float | Sequence[float] | Sequence[Sequence[float]] | np.ndarray | Tensor | None
Limit = PerFrame | Default


def choose_limits(config: AutoGazeConfig, gazing_ratio: Limit, requirement: Limit) -> tuple[PerFrame, PerFrame]:
    """The ratio and the requirement that a call means.

    Raises:
        TypeError: if one is neither a number nor numbers.
        ValueError: if a ratio is outside [0, 1], or a requirement is NaN; or negative for a model with a residual map,
            since only a published loss head may predict less than nothing.
    """
    ratio, asked = given_limits(gazing_ratio, requirement, (config.gazing_ratio, config.task_loss_requirement))
    ratios, requirements = numbers("gazing_ratio", ratio), numbers("task_loss_requirement", asked)
    if ratios is not None:
        check_ratios(ratios)
    negative = None if requirements is None else (requirements < 0) & requirements.isfinite()  # -inf: never stop
    if requirements is not None and negative is not None and config.residual_map and bool(negative.any()):
        raise ValueError(
            f"task_loss_requirement is a loss and must be at least 0 (None never stops early), "
            f"got {float(requirements.min()):g}"
        )
    return ratio, asked


def given_limits(gazing_ratio: Limit, requirement: Limit, own: tuple[PerFrame, PerFrame]) -> tuple[PerFrame, PerFrame]:
    """The rule alone: `own` where neither is given, no limit in the place of one that is not."""
    if _is_default(gazing_ratio) and _is_default(requirement):
        return own
    ratio: Any = None if _is_default(gazing_ratio) else gazing_ratio
    asked: Any = None if _is_default(requirement) else requirement
    return ratio, asked


def check_ratios(ratios: Tensor) -> None:
    """Refuse ratios outside [0, 1]."""
    if bool(((ratios < 0) | (ratios > 1)).any()):
        low, high = float(ratios.min()), float(ratios.max())
        got = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        hint = f"; {high:g} % is {high / 100:g}" if low >= 0 and 1 < high <= 100 else ""
        raise ValueError(f"gazing_ratio must be in [0, 1], the largest share of a frame's patches, got {got}{hint}")


def numbers(name: str, value: Any) -> Tensor | None:
    """A float64 CPU tensor of a number or of numbers in any container; None stays None.

    Raises:
        TypeError: if it is something else, such as a string or a truth value.
        ValueError: if a number is NaN, or rows differ in length.
    """
    if value is None:
        return None
    if isinstance(value, Tensor):
        right = value.dtype != torch.bool and not value.is_complex()
    elif isinstance(value, np.ndarray | np.generic):
        right = value.dtype.kind in "fiu"
    else:
        items = [value]
        while any(isinstance(item, list | tuple) for item in items):
            items = [inner for item in items for inner in (item if isinstance(item, list | tuple) else [item])]
        right = all(isinstance(item, Real | np.number | Tensor) and not isinstance(item, bool) for item in items)
    if not right:
        of = f" of {value.dtype}" if hasattr(value, "dtype") else ""
        shown = repr(value) if isinstance(value, str | bool) else f"{type(value).__name__}{of}"
        raise TypeError(f"{name} must be a number, numbers or None, got {shown}")
    try:
        tensor = (
            value.detach() if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float64, device="cpu")
        ).to("cpu", torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be a number or a rectangular array of numbers: {error}") from error
    if bool(tensor.isnan().any()):
        raise ValueError(f"{name} must not be NaN")
    return tensor


def _is_default(value: object) -> bool:
    return isinstance(value, str) and value == DEFAULT
