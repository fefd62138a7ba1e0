"""Shots: start anew at every cut, and drop frames that repeat what their shot has shown.

Two ideas from long-video work, without its networks: segmentation of a video into shots before tokens are spent
(TDC, Hao et al. 2025, arXiv:2504.10443) and dropping frames inside a shot that repeat the last kept one
(shot-adaptive frame pruning, Sophia, Zhang et al., ACL 2025). Kept frames spend their budget by difference from what
the shot has shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from autogaze.core.gaze import Gaze
from autogaze.core.grid import PatchGrid
from autogaze.decoding.request import PerFrame
from autogaze.selectors.difference import DifferenceSelector
from autogaze.selectors.ranking import open_video

_THUMB = 32  # pixels, side of the pictures in which frames are compared
_BINS = 16  # of each colour's histogram


@dataclass(frozen=True)
class ShotSelector:
    """The budget in kept frames, nothing in dropped ones: less than asked for, by nature."""

    grid: PatchGrid
    cut: float = 0.4  # share of pixels that change their histogram bin, at least, at a cut
    repeat: float = 0.02  # mean absolute difference of thumbnails, preprocessed pixels, at most, in a repeated frame

    @cached_property
    def difference(self) -> DifferenceSelector:
        return DifferenceSelector(self.grid)

    @torch.no_grad()
    def __call__(self, video: Tensor, gazing_ratio: PerFrame, generator: torch.Generator | None = None) -> Gaze:
        """Choose patches; deterministic, `generator` is not used."""
        video, budget = open_video(video, self.grid, gazing_ratio)
        thumbs = F.interpolate(video.flatten(0, 1), size=(_THUMB, _THUMB), mode="bilinear", antialias=True)
        thumbs = thumbs.unflatten(0, budget.shape)
        cuts = self.cuts(thumbs)
        return self.difference.choose(video, budget * self.kept(thumbs, cuts), cuts)

    def cuts(self, thumbs: Tensor) -> Tensor:
        """(B, T) bool: frames that begin a shot, the first one included. thumbs: (B, T, 3, h, w)."""
        low, high = thumbs.amin((1, 3, 4), keepdim=True), thumbs.amax((1, 3, 4), keepdim=True)
        bins = ((thumbs - low) / (high - low).clamp(min=1e-6) * _BINS).long().clamp(max=_BINS - 1)
        histogram = F.one_hot(bins.flatten(-2), _BINS).float().mean(-2)  # (B, T, 3, bins)
        moved = (histogram[:, 1:] - histogram[:, :-1]).abs().sum(-1).mean(-1) / 2
        return torch.cat([torch.ones_like(bins[:, :1, 0, 0, 0], dtype=torch.bool), moved >= self.cut], dim=1)

    def kept(self, thumbs: Tensor, cuts: Tensor) -> Tensor:
        """(B, T) bool: frames that begin a shot or differ from the last kept one."""
        last, kept = thumbs[:, 0], []
        for t in range(thumbs.shape[1]):
            keep = cuts[:, t] | ((thumbs[:, t] - last).abs().mean((1, 2, 3)) > self.repeat)
            last = torch.where(keep[:, None, None, None], thumbs[:, t], last)
            kept.append(keep)
        return torch.stack(kept, dim=1)
