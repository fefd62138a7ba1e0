"""From uint8 frames to what the model takes: the only home of mean, std, ranges and resizing.

A frame is resized as PIL does it (antialiased, in 8-bit steps, to the last bit), then `x * rescale_factor`, minus 1
when `offset` is set, then `(x - mean) / std`. The default maps 0..255 to -1..1 at 224 x 224 pixels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from autogaze.files import write_json
from autogaze.media.frames import as_frames

Resample = Literal["bilinear", "bicubic"]
RESAMPLE_CODES: dict[Resample, int] = {"bilinear": 2, "bicubic": 3}  # PIL's numbers, used in published files
WEIGHT_BITS = 22  # PIL's fixed point for 8-bit images: 32 - 8 bits, and 2 to spare
_ELEMENTS_AT_ONCE = {"cuda": 1 << 28, "cpu": 1 << 24}  # pixels resized together: 40 frames of 1080p on a GPU


@dataclass(frozen=True)
class Preprocessor:
    """Preprocessing of frames into the model's input; saved beside the weights in the published format."""

    size: tuple[int, int] | int = (224, 224)  # pixels: (height, width), or the shorter edge
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)  # of RGB, after rescaling
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    rescale_factor: float = 1 / 127.5
    offset: bool = True  # subtract 1 after rescaling
    resample: Resample = "bilinear"

    def __post_init__(self) -> None:
        if min(self.size if isinstance(self.size, tuple) else (self.size,)) < 1:
            raise ValueError(f"size must be positive pixels, got {self.size}")
        if self.resample not in RESAMPLE_CODES:
            raise ValueError(f"resample must be one of {sorted(RESAMPLE_CODES)}, got {self.resample!r}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean and std need 3 values and std must be positive, got {self.mean} and {self.std}")

    def __call__(self, frames: Any) -> Tensor:
        """Resize and normalise.

        Args:
            frames: (T, H, W, 3) or (B, T, H, W, 3) uint8 RGB, or what else `autogaze.media.frames` takes; a tensor
                stays on its device.

        Returns:
            (1, T, 3, height, width) or (B, T, 3, height, width) float32.

        Raises:
            ValueError: if the frames are nothing of the kind.
        """
        frames = as_frames(frames)
        batch = frames[None] if frames.ndim == 4 else frames
        resized = resize(batch.flatten(0, 1), self.target(batch.shape[2], batch.shape[3]), self.resample)
        return self.normalise(resized).unflatten(0, batch.shape[:2])

    @property
    def value_range(self) -> tuple[float, float]:
        """The values that 0 and 255 become: the least and the largest that a preprocessed video can have."""
        shift = 1.0 if self.offset else 0.0
        ends = [
            ((x * self.rescale_factor - shift) - m) / s
            for x in (0, 255)
            for m, s in zip(self.mean, self.std, strict=True)
        ]
        return min(ends), max(ends)

    def normalise(self, frames: Tensor) -> Tensor:
        """(T, H, W, 3) uint8 -> (T, 3, H, W) float32 without resizing."""
        x = frames.permute(0, 3, 1, 2).float() * self.rescale_factor
        x -= 1.0 if self.offset else 0.0
        if not any(self.mean) and set(self.std) == {1.0}:  # as ours are
            return x
        mean, std = (torch.tensor(v, dtype=torch.float32, device=x.device).view(3, 1, 1) for v in (self.mean, self.std))
        return (x - mean) / std

    def restore(self, video: Tensor) -> Tensor:
        """The uint8 frames (..., H, W, 3) of a preprocessed video (..., 3, H, W)."""
        mean, std = (
            torch.tensor(v, dtype=torch.float32, device=video.device).view(3, 1, 1) for v in (self.mean, self.std)
        )
        x = (video.float() * std + mean + (1.0 if self.offset else 0.0)) / self.rescale_factor
        return x.round().clamp(0, 255).to(torch.uint8).movedim(-3, -1)

    def target(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) in pixels that a frame of this size is resized to."""
        if isinstance(self.size, tuple):
            return self.size
        short, long = sorted((height, width))
        scaled = int(self.size * long / short)
        return (self.size, scaled) if height <= width else (scaled, self.size)

    def to_dict(self) -> dict[str, Any]:
        """The published form."""
        size = (
            {"shortest_edge": self.size}
            if isinstance(self.size, int)
            else {"height": self.size[0], "width": self.size[1]}
        )
        return {
            "image_processor_type": "AutoGazeImageProcessor",
            "do_resize": True,
            "size": size,
            "resample": RESAMPLE_CODES[self.resample],
            "do_center_crop": False,
            "do_rescale": True,
            "rescale_factor": self.rescale_factor,
            "offset": self.offset,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Preprocessor:
        """Read the published form.

        Raises:
            ValueError: on a step that this class does not do (centre crop, another filter).
        """
        if data.get("do_center_crop") or not data.get("do_resize", True) or not data.get("do_rescale", True):
            raise ValueError("this preprocessing crops, or leaves out resizing or rescaling; that is not supported")
        normalised = data.get("do_normalize", True)
        return cls(
            _read_size(data.get("size", {"height": 224, "width": 224})),
            tuple(data.get("image_mean", (0.0,) * 3)) if normalised else (0.0,) * 3,
            tuple(data.get("image_std", (1.0,) * 3)) if normalised else (1.0,) * 3,
            float(data.get("rescale_factor", 1 / 127.5)),
            bool(data.get("offset", True)),
            _read_resample(data.get("resample", 2)),
        )

    @classmethod
    def load(cls, path: str | Path) -> Preprocessor:
        """Read a checkpoint's `preprocessor_config.json`; the default where there is no such file."""
        path = Path(path)
        return cls.from_dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else cls()

    def save(self, path: str | Path) -> None:
        """Write `preprocessor_config.json`."""
        write_json(path, self.to_dict())


def resize(frames: Tensor, size: tuple[int, int], resample: Resample = "bilinear") -> Tensor:
    """Resize uint8 frames as PIL's `Image.resize` does, bit for bit: by PIL on a CPU, by the same arithmetic elsewhere.

    Args:
        frames: (T, H, W, 3) uint8.
        size: (height, width) in pixels.
        resample: "bilinear" or "bicubic"; the filter widens when shrinking, so nothing aliases.

    Returns:
        (T, height, width, 3) uint8 on the same device.

    Source: the two-pass fixed-point convolution of Pillow's `Resample.c` (horizontal first, rounded to 8 bits).
    """
    if frames.device.type == "cpu":
        target = (size[1], size[0])
        resized = [
            Image.fromarray(frame).resize(target, Image.Resampling(RESAMPLE_CODES[resample]))
            for frame in frames.contiguous().numpy()
        ]
        return torch.from_numpy(np.stack([np.asarray(image) for image in resized]))
    return filter_resize(frames, size, resample)


def filter_resize(frames: Tensor, size: tuple[int, int], resample: str) -> Tensor:
    """`resize` in PyTorch's operations, for frames on a GPU."""
    return torch.cat(
        [
            _filter(_filter(part, 2, size[1], resample), 1, size[0], resample)
            for part in frames.split(
                max(1, _ELEMENTS_AT_ONCE.get(frames.device.type, 1 << 24) // max(1, frames[0].numel()))
            )
        ]
    )


def _filter(frames: Tensor, dim: int, length: int, resample: str) -> Tensor:
    """Resample one dimension, with the taps as the outer loop: each tap is one gather of whole rows."""
    if frames.shape[dim] == length:
        return frames
    first, weights = (table.to(frames.device) for table in filter_taps(frames.shape[dim], length, resample))
    rows = frames.movedim(dim, 0)
    rows = rows.contiguous().flatten(1)  # (in, everything else)
    total = torch.full((length, rows.shape[1]), 1 << (WEIGHT_BITS - 1), dtype=torch.int32, device=frames.device)
    for tap in range(weights.shape[1]):
        index = (first + tap).clamp(max=len(rows) - 1)  # the weights beyond the edge are 0
        total.addcmul_(rows.index_select(0, index).int(), weights[:, tap, None])
    shape = [length, *(n for d, n in enumerate(frames.shape) if d != dim)]
    return (total >> WEIGHT_BITS).clamp_(0, 255).to(torch.uint8).view(shape).movedim(0, dim).contiguous()


@lru_cache(maxsize=64)
def filter_taps(source: int, target: int, resample: str) -> tuple[Tensor, Tensor]:
    """First source index (target,) and int32 fixed-point weights (target, taps) of every target pixel."""
    reach, kernel = _KERNELS[resample]
    scale = source / target
    stretch = max(scale, 1.0)
    support = reach * stretch
    taps = math.ceil(support) * 2 + 1
    first, weights = np.zeros(target, np.int64), np.zeros((target, taps))
    for i in range(target):
        centre = (i + 0.5) * scale
        start, stop = max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), source)
        row = [kernel(abs((x - centre + 0.5) / stretch)) for x in range(start, stop)]
        first[i], weights[i, : len(row)] = start, np.array(row) / sum(row)
    fixed = np.trunc(weights * (1 << WEIGHT_BITS) + np.where(weights < 0, -0.5, 0.5)).astype(np.int32)
    return torch.from_numpy(first), torch.from_numpy(fixed)


def _triangle(x: float) -> float:
    return max(0.0, 1.0 - x)


def _cubic(x: float) -> float:
    """Keys' cubic with a = -0.5, as in PIL."""
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return ((-0.5 * x + 2.5) * x - 4) * x + 2 if x < 2 else 0.0


_KERNELS: dict[str, tuple[float, Callable[[float], float]]] = {"bilinear": (1.0, _triangle), "bicubic": (2.0, _cubic)}


def _read_size(size: dict[str, int] | int) -> tuple[int, int] | int:
    if isinstance(size, int):
        return (size, size)
    if "shortest_edge" in size:
        return int(size["shortest_edge"])
    if {"height", "width"} <= size.keys():
        return int(size["height"]), int(size["width"])
    raise ValueError(f"size must have height and width, or shortest_edge, got {size}")


def _read_resample(code: int | str) -> Resample:
    for name, number in RESAMPLE_CODES.items():
        if (code if isinstance(code, int) else str(code).split(" ")[0]) in (name, number):
            return name
    raise ValueError(f"resample must be PIL's 2 (bilinear) or 3 (bicubic), got {code!r}")
