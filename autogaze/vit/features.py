"""Features of the chosen patches, with their places: what `GazedViT` returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from autogaze.core.grid import PatchGrid


@dataclass(frozen=True, eq=False)
class PackedFeatures:
    """One feature for every chosen patch, clip after clip, frame after frame, without padding.

    With a capacity the rows from `offsets[-1]` on are filler; their numbers mean nothing.
    """

    features: Tensor  # (N, D), after the ViT's last norm
    ids: Tensor  # (N,) int64, local to their frame
    clip: Tensor  # (N,) int64, 0 <= clip < B
    frame: Tensor  # (N,) int64, 0 <= frame < T
    offsets: Tensor  # (B * T + 1,) int32: frame t of clip b is rows [offsets[b * T + t], offsets[b * T + t + 1])
    prefix: Tensor  # (B, T, R, D) class and register tokens of each frame; (B, 1, R, D) with joint attention
    grid: PatchGrid
    joint: bool  # whether frames were attended, and are pooled, together
    longest: int = field(repr=False)  # at least the patches of the fullest frame
    head: Callable[[PoolInput], Tensor] = field(repr=False)

    @property
    def frames(self) -> int:
        """T."""
        return (len(self.offsets) - 1) // self.prefix.shape[0]

    def pool(self) -> Tensor:
        """The ViT's own pooling head (attention pooling, class token, average ...) over the chosen patches.

        Returns:
            (B, T, D'), or (B, D') with joint attention: what the dense model puts before its classifier.
            A frame (clip) in which nothing was chosen and that has no class token pools to zeros.

        Raises:
            ValueError: if this ViT has no pooling that works on some of the patches.
        """
        clips, units = self.prefix.shape[:2]
        step = self.frames // units
        tokens = PoolInput(
            self.features, self.prefix.flatten(0, 1), self.offsets[::step].contiguous(), self.longest * step
        )
        with torch.inference_mode(self.features.is_inference()):  # so that it may be called outside that block
            pooled = self.head(tokens)
            return pooled if self.joint else pooled.unflatten(0, (clips, units))

    def dense(self, fill: float = 0.0) -> Tensor:
        """Features as a map, for detection and segmentation heads.

        A cell of the finest scale takes the feature of the finest chosen patch that covers its centre.

        Args:
            fill: where no chosen patch covers a cell.

        Returns:
            (B, T, D, rows, columns) of the finest scale.
        """
        table = self._row_of_patch()
        rows = table.new_full((len(table), *self.grid.sides[-1]), -1)
        for start, cells in zip(self.grid.offsets, _cells_to_patches(self.grid, table.device), strict=True):
            found = table[:, start + cells]
            rows = torch.where(found >= 0, found, rows)
        features = torch.cat([self.features, self.features.new_full((1, self.features.shape[-1]), fill)])
        maps = features[rows]  # row -1 is the filling
        return maps.permute(0, 3, 1, 2).unflatten(0, (self.prefix.shape[0], self.frames))

    def _row_of_patch(self) -> Tensor:
        """(B * T, patches_per_frame) int64: the packed row of every patch, -1 where it was not chosen."""
        count, size = len(self.offsets) - 1, self.grid.patches_per_frame
        row = torch.arange(len(self.ids), device=self.ids.device)
        place = (self.clip * self.frames + self.frame) * size + self.ids
        place = place.where(row < self.offsets[-1], count * size)  # filler
        table = torch.full((count * size + 1,), -1, device=row.device)
        return table.scatter_(0, place, row)[:-1].view(count, size)


@dataclass(frozen=True, eq=False)
class PoolInput:
    """What a pooling head pools over: stretches of packed patches, each with its own class and register tokens."""

    features: Tensor  # (N, D)
    prefix: Tensor  # (S, R, D)
    offsets: Tensor  # (S + 1,) int32
    longest: int  # at least the longest stretch


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _cells_to_patches(grid: PatchGrid, device: torch.device) -> list[Tensor]:
    """For every scale (rows, columns): the patch, counted in the scale, that covers each finest cell's centre."""
    result = []
    rows, columns = grid.sides[-1]
    finest = grid.scales[-1] // grid.patch_size
    for k, (height, width) in enumerate(grid.sides):
        share = (grid.scales[k] // grid.patch_size) / finest
        row = ((torch.arange(rows) + 0.5) * share).long().clamp(max=height - 1)
        column = ((torch.arange(columns) + 0.5) * share).long().clamp(max=width - 1)
        result.append((row[:, None] * width + column).to(device))
    return result
