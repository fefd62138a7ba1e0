"""Results: everything one evaluation found, in one JSON file; tables, plots and the model card are made from it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from autogaze.evaluate.bootstrap import Interval
from autogaze.evaluate.feature_summary import FeatureComparison, FeatureRow
from autogaze.evaluate.requirement import RequirementRow
from autogaze.files import write_json


@dataclass(frozen=True)
class Protocol:
    """Protocol of an evaluation: what was measured, on which clips."""

    data: str  # name of the folder
    clips: int
    sources: int  # films that the clips were cut from; these are resampled for confidence
    frames: int  # of every clip
    sampling: str  # which frames
    frame_px: int  # side of the square that is looked at
    patches_per_frame: int
    loss: str  # the reconstructor's training loss
    precision: str
    seed: int
    skipped: tuple[str, ...]  # clips that could not be read


@dataclass(frozen=True)
class ClipFact:
    """One clip."""

    name: str
    kind: str
    source: str
    dense_loss: float  # when everything is looked at


@dataclass(frozen=True)
class Row:
    """Means of one method at one ratio over all clips, with confidence."""

    method: str
    sort: str  # network, selector or oracle
    gazing_ratio: float  # asked
    spent: float  # used
    loss: Interval
    psnr: Interval  # decibels
    ssim: Interval
    paste_psnr: Interval  # decibels
    paste_ssim: Interval
    clip_losses: tuple[float, ...]  # in the order of the clips


@dataclass(frozen=True)
class KindRow:
    """Mean loss of one method on the clips of one kind."""

    method: str
    gazing_ratio: float
    kind: str
    clips: int
    loss: Interval
    over_random: Interval | None  # loss minus that of random; None without random


@dataclass(frozen=True)
class Comparison:
    """One figure that compares methods at equal ratio."""

    figure: str  # "loss over", "loss minus" or "way to the oracle"
    method: str
    against: str
    gazing_ratio: float
    interval: Interval


@dataclass(frozen=True)
class RatioForLoss:
    """The ratio that a method needs to reach a loss, read off its mean curve."""

    method: str
    target: str
    loss: float
    ratio: float | None  # None: not reached at any ratio that was measured
    at_most: bool = False  # the smallest ratio that was measured is already enough


@dataclass(frozen=True)
class WorstClip:
    """A clip on which a network does badly, measured against random."""

    method: str
    gazing_ratio: float
    clip: str
    kind: str
    loss: float
    over_random: float  # loss divided by that of random


@dataclass(frozen=True)
class Results:
    """One evaluation."""

    protocol: Protocol
    clips: tuple[ClipFact, ...]
    rows: tuple[Row, ...]
    kinds: tuple[KindRow, ...]
    comparisons: tuple[Comparison, ...]
    ratios_for_loss: tuple[RatioForLoss, ...]
    worst: tuple[WorstClip, ...]
    requirements: tuple[RequirementRow, ...] = ()
    features: tuple[FeatureRow, ...] = ()
    feature_comparisons: tuple[FeatureComparison, ...] = ()

    @property
    def dense_loss(self) -> float:
        """Mean loss when everything is looked at."""
        return sum(clip.dense_loss for clip in self.clips) / len(self.clips)

    def row(self, method: str, gazing_ratio: float) -> Row | None:
        """The row of a method at a ratio."""
        return next((row for row in self.rows if (row.method, row.gazing_ratio) == (method, gazing_ratio)), None)

    def methods(self, sort: str | None = None) -> list[str]:
        """Names in the order measured, of one sort or all."""
        return list(dict.fromkeys(row.method for row in self.rows if sort in (None, row.sort)))

    def ratios(self) -> list[float]:
        """Ratios that were asked, ascending."""
        return sorted({row.gazing_ratio for row in self.rows})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def save(self, path: str | Path, **more: object) -> None:
        """Write the JSON file; `more` is put beside the results (device, versions, command)."""
        write_json(path, {**more, **_rounded(self.to_dict())})

    @classmethod
    def load(cls, path: str | Path) -> Results:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it holds something else.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no results {path}; make them with `autogaze evaluate` or benchmarks.quality")
        try:
            return _build(cls, json.loads(path.read_text(encoding="utf-8")))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} does not hold results of an evaluation: {error}") from error


def _build(kind: Any, data: Any) -> Any:
    """A dataclass (or tuple of them) from what `asdict` made of it."""
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        known = {field.name: data[field.name] for field in fields(kind) if field.name in data}  # others have defaults
        return kind(**{name: _build(hints[name], value) for name, value in known.items()})
    options = [option for option in get_args(kind) if is_dataclass(option)]
    if isinstance(data, list):
        return tuple(_build(get_args(kind)[0], value) for value in data)
    return _build(options[0], data) if options and data is not None else data


def _rounded(data: Any) -> Any:
    """The same data with six significant digits."""
    if isinstance(data, float):
        return float(f"{data:.6g}")
    if isinstance(data, dict):
        return {key: _rounded(value) for key, value in data.items()}
    return [_rounded(value) for value in data] if isinstance(data, list | tuple) else data
