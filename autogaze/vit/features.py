"""Features of the chosen patches, with their places: what `GazedViT` returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from autogaze.core.grid import PatchGrid
from autogaze.vit.memory import each_once, row_of_patch, shown_in_frame
from autogaze.vit.motion import Side, joined


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
    shown: Tensor | None = None  # (B * T, cells) with memory: row of [kept, features] that shows each cell, or -1
    kept: Tensor | None = field(repr=False, default=None)  # (slots, D) features from before this call of a stream
    sides: Callable[[], list[Side]] | None = field(repr=False, default=None)  # with memory: what a map is read from

    @property
    def frames(self) -> int:
        """T."""
        return (len(self.offsets) - 1) // self.prefix.shape[0]

    def pool(self) -> Tensor:
        """The ViT's own pooling head (attention pooling, class token, average ...) over the chosen patches.

        Returns:
            (B, T, D'), or (B, D') with joint attention: what the dense model puts before its classifier. With memory
            a frame pools over the newest patch of every cell. A frame (clip) in which nothing was chosen and that has
            no class token pools to zeros.

        Raises:
            ValueError: if this ViT has no pooling that works on some of the patches.
        """
        clips, units = self.prefix.shape[:2]
        step = self.frames // units
        tokens = PoolInput(
            self.features, self.prefix.flatten(0, 1), self.offsets[::step].contiguous(), self.longest * step
        )
        if self.shown is not None:
            tokens = self._of_whole_picture(self.shown)
        with torch.inference_mode(self.features.is_inference()):  # so that it may be called outside that block
            pooled = self.head(tokens)
            return pooled if self.joint else pooled.unflatten(0, (clips, units))

    def dense(self, fill: float = 0.0, follow: bool = True) -> Tensor:
        """Features as a map, for detection and segmentation heads.

        A cell of the finest scale takes the feature of the finest chosen patch that covers its centre; with memory,
        of the newest one, from this frame or an earlier one; with attention "nearest" of the one nearest in time.

        Args:
            follow: with memory, cells that were not looked at again follow what moved in the frames
                (`autogaze.vit.motion`); with attention "nearest" they lie between the looks before and after.
            fill: where no chosen patch covers, or with memory has ever covered, a cell.

        Returns:
            (B, T, D, rows, columns) of the finest scale.
        """
        shown = self.shown
        if shown is None:
            patches = self.grid.patches_per_frame
            table = row_of_patch(self.ids, self.clip, self.frame, self.offsets, self.frames, patches)
            shown = shown_in_frame(table, self.grid)
        parts = [self.features, self.features.new_full((1, self.features.shape[-1]), fill)]
        rows = torch.cat(parts if self.kept is None else [self.kept, *parts])  # row -1 is the filling

        def read(shown: Tensor) -> Tensor:
            return rows[shown].unflatten(1, self.grid.sides[-1]).permute(0, 3, 1, 2)

        sides = self.sides() if follow and self.sides is not None else []
        maps = joined(sides, read, self.grid.sides[-1]) if sides else read(shown)
        return maps.unflatten(0, (self.prefix.shape[0], self.frames))

    def _of_whole_picture(self, shown: Tensor) -> PoolInput:
        """Input of a pooling head with memory: of every frame the newest patch of every cell."""
        rows, counts = each_once(shown, len(self.grid.scales))
        real = torch.arange(rows.shape[1], device=rows.device) < counts[:, None]
        features = self.features if self.kept is None else torch.cat([self.kept, self.features])
        ends = counts.cumsum(0)
        offsets = torch.cat([ends.new_zeros(1), ends]).to(torch.int32)
        return PoolInput(features[rows[real]], self.prefix.flatten(0, 1), offsets, rows.shape[1])


@dataclass(frozen=True, eq=False)
class PoolInput:
    """Input of a pooling head: stretches of packed patches, each with its own class and register tokens."""

    features: Tensor  # (N, D)
    prefix: Tensor  # (S, R, D)
    offsets: Tensor  # (S + 1,) int32
    longest: int  # at least the longest stretch
