"""Metadata of an exported file: the same text keys inside ONNX and TensorRT files, in Python and in C++.

Values are plain text (`scales` = "32+64+112+224"), so that a C++ program reads them without a JSON parser.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from autogaze.core.grid import PatchGrid
from autogaze.media.preprocess import Preprocessor, Resample
from autogaze.model import AutoGazeConfig

FORMAT = 3  # written, and the newest that is read (cpp/src/metadata.hpp says the same); newer ones are refused
PREFIX = "autogaze."
LARGEST = 1 << 15  # of any size in a file: pixels, ids, frames, samples
MOST_PATCHES = 1 << 20  # ids a frame
_WORDS = {"kind": ("frame", "clip"), "precision": ("fp32", "fp16", "bf16"), "pixels": ("float32", "uint8")}


class FormatError(ValueError):
    """A file that is not ours, not whole, or of a newer format."""


@dataclass(frozen=True)
class Metadata:
    """Everything a program needs to use an exported file, besides the file."""

    kind: str  # "frame": one frame a call, memory in and out; "clip": all frames at once
    precision: str  # "fp32", "fp16" or "bf16"
    scales: tuple[int, ...]  # pixels, ascending
    patch_size: int  # pixels
    group: int  # K, ids a decode step
    budget: int  # most ids a frame may spend
    frames: int  # "frame": frames remembered; "clip": frames a clip
    gazing_ratio: float  # default: largest share of a frame's patches
    task_loss_requirement: float  # default: loss at which a frame may stop; -inf: never
    calibration: tuple[
        tuple[float, float], ...
    ]  # (loss asked for, threshold on the prediction), applied inside the file
    batch: tuple[int, int]  # smallest and largest
    pixels: str  # "float32": preprocessed (3, H, W); "uint8": RGB (H, W, 3), preprocessed inside
    input_size: tuple[int, int]  # (height, width) in pixels of a frame that goes in
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rescale_factor: float
    offset: bool
    resample: Resample
    allowed_scales: tuple[int, ...] = ()  # pixels, those whose ids may be chosen; empty: all (formats 1 and 2)
    format: int = FORMAT

    def __post_init__(self) -> None:
        for name, known in _WORDS.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be {' or '.join(known)}, got {getattr(self, name)!r}")
        sizes = (*self.scales, self.patch_size, self.group, self.budget, self.frames, *self.batch, *self.input_size)
        if min(sizes) < 1 or len(self.batch) != 2 or len(self.input_size) != 2 or self.batch[0] > self.batch[1]:
            raise ValueError("a size is not positive, or a pair is none")
        if max(sizes) > LARGEST:
            raise ValueError(f"a size is above {LARGEST}")
        if sum((scale // self.patch_size) ** 2 for scale in self.scales) > MOST_PATCHES:
            raise ValueError(f"more than {MOST_PATCHES} patches a frame")
        if not set(self.allowed_scales) <= set(self.scales):
            raise ValueError(f"allowed_scales must be some of the scales {self.scales}, got {self.allowed_scales}")
        if self.budget > int(self.allowed.sum()):
            raise ValueError(f"a frame has {int(self.allowed.sum())} ids to choose from, the budget is {self.budget}")
        if not 0 < self.gazing_ratio <= 1 or math.isnan(self.task_loss_requirement):
            raise ValueError("gazing_ratio must be in (0, 1], and task_loss_requirement a number")
        if not all(math.isfinite(number) for pair in self.calibration for number in pair):
            raise ValueError("calibration must be finite numbers")
        if not all(math.isfinite(number) for number in (*self.mean, *self.std, self.rescale_factor)):
            raise ValueError("mean, std and rescale_factor must be finite numbers")
        _ = self.preprocessor  # it checks its own

    @property
    def grid(self) -> PatchGrid:
        return PatchGrid(self.scales, self.patch_size)

    @property
    def allowed(self) -> Tensor:
        """(P,) bool: the ids that may be chosen."""
        grid = self.grid
        kept = torch.tensor([scale in (self.allowed_scales or self.scales) for scale in self.scales])
        return kept.repeat_interleave(torch.tensor(grid.patches_per_scale))

    @property
    def preprocessor(self) -> Preprocessor:
        """The preprocessing of uint8 frames: outside the file when `pixels` is float32, inside otherwise."""
        return Preprocessor(
            (self.scales[-1], self.scales[-1]), self.mean, self.std, self.rescale_factor, self.offset, self.resample
        )

    def words(self) -> str:
        """The file in a few words."""
        return f"{self.kind} graph, {self.precision}, up to {self.budget} ids a frame"

    def to_properties(self) -> dict[str, str]:
        """Text keys and values."""
        return {PREFIX + field.name: _write(field.name, getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_properties(cls, properties: dict[str, str], name: str) -> Metadata:
        """Read text keys and values.

        Args:
            name: of the file, for messages.

        Raises:
            FormatError: if it is not ours or of a newer format.
        """
        version = properties.get(PREFIX + "format", "")
        if not version.isdigit():
            raise FormatError(
                f"{name}: not an autogaze export (it has no {PREFIX}format); make one with `autogaze export`"
            )
        if int(version) > FORMAT:
            raise FormatError(
                f"{name}: written in format {version}, this autogaze reads up to {FORMAT}; update autogaze"
            )
        missing = [f.name for f in fields(cls) if PREFIX + f.name not in properties and f.default is MISSING]
        if missing:
            raise FormatError(f"{name}: metadata lacks {', '.join(missing)}; export it again")
        try:
            named = {field.name: properties.get(PREFIX + field.name) for field in fields(cls)}
            return cls(**{name: _READ[name](text) for name, text in named.items() if text is not None})
        except ValueError as error:
            raise FormatError(f"{name}: damaged metadata ({error}); export it again") from error


def _write(name: str, value: object) -> str:
    if name.endswith("scales"):
        return "+".join(map(str, value))  # type: ignore[call-overload]
    if name == "calibration":
        return ",".join(f"{asked!r}:{threshold!r}" for asked, threshold in value)  # type: ignore[attr-defined]
    if isinstance(value, tuple):
        return ",".join(repr(item) for item in value)
    return str(int(value)) if isinstance(value, bool) else str(value)


def _floats(text: str) -> tuple[float, ...]:
    return tuple(float(item) for item in text.split(","))


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(item) for item in text.split(","))


def _scales(text: str) -> tuple[int, ...]:
    return tuple(int(scale) for scale in text.split("+"))


def _pairs(text: str) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(number) for number in pair.split(":")) for pair in text.split(",") if pair)


_READ: dict[str, Callable[[str], Any]] = {
    "kind": str,
    "precision": str,
    "scales": _scales,
    "allowed_scales": _scales,
    "patch_size": int,
    "group": int,
    "budget": int,
    "frames": int,
    "gazing_ratio": float,
    "task_loss_requirement": float,
    "calibration": _pairs,
    "batch": _integers,
    "pixels": str,
    "input_size": _integers,
    "mean": _floats,
    "std": _floats,
    "rescale_factor": float,
    "offset": lambda text: bool(int(text)),
    "resample": str,
    "format": int,
}


def describe(
    config: AutoGazeConfig,
    preprocessor: Preprocessor,
    *,
    kind: str,
    precision: str,
    budget: int,
    frames: int,
    gazing_ratio: float,
    allowed_scales: tuple[int, ...],
    batch: tuple[int, int],
    pixels: str,
    input_size: tuple[int, int],
) -> Metadata:
    """The metadata of a file that is about to be written for a model."""
    requirement = config.task_loss_requirement
    return Metadata(
        kind=kind,
        precision=precision,
        scales=config.scales,
        patch_size=config.patch_size,
        group=config.num_multi_token_pred,
        budget=budget,
        frames=frames,
        gazing_ratio=gazing_ratio,
        task_loss_requirement=float("-inf") if requirement is None else requirement,
        calibration=config.calibration,
        batch=batch,
        pixels=pixels,
        input_size=input_size,
        mean=preprocessor.mean,
        std=preprocessor.std,
        rescale_factor=preprocessor.rescale_factor,
        offset=preprocessor.offset,
        resample=preprocessor.resample,
        allowed_scales=allowed_scales,
    )
