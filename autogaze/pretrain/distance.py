"""Distances between pictures: as a pretrained ViT represents them, by pixels, or a weighted sum of several.

    distance = FeatureDistance(load_vit("facebook/dinov2-small", "cuda"))
    target = distance.target(frames)          # once for each frame, (N, 3, H, W) as a preprocessor returns them
    loss = distance(pictures, target)         # (N,), differentiable in the pictures

A distance of features is 1 - cosine, mean over the patch tokens, or of the pooled feature, or a weighted sum of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from autogaze.media.preprocess import Preprocessor
from autogaze.vit.load import LoadedViT

Target = tuple[Tensor, ...]  # what is kept of the true frames, the same number of rows in each tensor


class Distance(Protocol):
    """Distance of pictures from the true frames."""

    @property
    def width(self) -> int:
        """Tensors in its target."""
        ...

    def target(self, frames: Tensor) -> Target:
        """The target of a comparison, of frames (N, 3, H, W)."""
        ...

    def __call__(self, pictures: Tensor, target: Target) -> Tensor:
        """(N,) float32 of pictures (N, 3, H, W) against `target` of as many frames."""
        ...

    def with_map(self, pictures: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        """The same, and where in the picture it comes from: (N, rows, columns) float32, in any raster."""
        ...


@dataclass(frozen=True, eq=False)
class FeatureDistance:
    """1 - cosine of a ViT's features."""

    vit: LoadedViT
    preprocessor: Preprocessor = Preprocessor()  # says which range the pictures have
    patch: float = 1.0  # weight of the mean over patch tokens
    pooled: float = 0.0  # weight of the pooled feature
    size: int | None = None  # side in pixels to which pictures are brought; None leaves them as they are
    layers: tuple[int, ...] = ()  # whose tokens, see `LoadedViT.tokens`; none: the last one's

    def __post_init__(self) -> None:
        if min(self.patch, self.pooled) < 0 or self.patch + self.pooled <= 0:
            raise ValueError(f"weights must be 0 or more, one of them positive, got {self.patch} and {self.pooled}")

    @property
    def width(self) -> int:
        return 2

    def target(self, frames: Tensor) -> Target:
        """Patch tokens (N, L, C) and pooled feature (N, C), each of length 1; without gradients."""
        with torch.no_grad():
            return self.features(frames)

    def __call__(self, pictures: Tensor, target: Target) -> Tensor:
        return self.with_map(pictures, target)[0]

    def with_map(self, pictures: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        tokens, pooled = self.parts(self.features(pictures), target)
        height, width = pictures.shape[-2:]
        rows = round((tokens.shape[1] * height / width) ** 0.5)
        if tokens.shape[1] % rows:
            raise ValueError(f"{self.vit.name} gives {tokens.shape[1]} tokens: no raster of {height} x {width} pixels")
        return self.patch * tokens.mean(1) + self.pooled * pooled, tokens.unflatten(1, (rows, -1))

    def features(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """`target`, but with gradients; in the type that the ViT or autocast gives."""
        pixels = unit_range(pictures, self.preprocessor)
        if self.size is not None and pixels.shape[-2:] != (self.size, self.size):
            pixels = F.interpolate(pixels, (self.size, self.size), mode="bilinear", antialias=True)
        tokens, pooled = self.vit.tokens(pixels, self.layers)
        return F.normalize(tokens, dim=-1), F.normalize(pooled, dim=-1)

    @staticmethod
    def parts(features: Target, target: Target) -> tuple[Tensor, Tensor]:
        """Distance of each patch token (N, L) and of the pooled feature (N,), float32."""
        tokens, pooled = ((a.float() * b.float()).sum(-1) for a, b in zip(features, target, strict=True))
        return 1 - tokens, 1 - pooled


@dataclass(frozen=True)
class PixelDistance:
    """Mean absolute difference of preprocessed pixels."""

    @property
    def width(self) -> int:
        return 1

    def target(self, frames: Tensor) -> Target:
        return (frames.detach(),)

    def __call__(self, pictures: Tensor, target: Target) -> Tensor:
        return self.with_map(pictures, target)[0]

    def with_map(self, pictures: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        error = (pictures.float() - target[0].float()).abs().mean(1)
        return error.mean((1, 2)), error


@dataclass(frozen=True, eq=False)
class WeightedDistance:
    """A sum of distances, each with its weight."""

    terms: Sequence[tuple[float, Distance]]

    @property
    def width(self) -> int:
        return sum(distance.width for _, distance in self.terms)

    def target(self, frames: Tensor) -> Target:
        return tuple(part for _, distance in self.terms for part in distance.target(frames))

    def __call__(self, pictures: Tensor, target: Target) -> Tensor:
        return self.with_map(pictures, target)[0]

    def with_map(self, pictures: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        losses, maps, start = [], [], 0
        for weight, distance in self.terms:
            loss, local = distance.with_map(pictures, target[start : start + distance.width])
            losses.append(weight * loss)
            maps.append(weight * local)
            start += distance.width
        finest = max((local.shape[-2:] for local in maps), key=lambda size: size[0])
        return torch.stack(losses).sum(0), torch.stack([resized(local, finest) for local in maps]).sum(0)


def resized(maps: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Maps (N, rows, columns) in another raster."""
    if maps.shape[-2:] == tuple(size):
        return maps
    return F.interpolate(maps[:, None], tuple(size), mode="bilinear", antialias=True)[:, 0]


def unit_range(pictures: Tensor, preprocessor: Preprocessor) -> Tensor:
    """Preprocessed pixels (..., 3, H, W) as float32 in [0, 1]."""
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device=pictures.device).view(3, 1, 1)
        for values in (preprocessor.mean, preprocessor.std)
    )
    pixels = pictures.float() * std + mean + (1.0 if preprocessor.offset else 0.0)
    return pixels / (255 * preprocessor.rescale_factor)
