"""Gazes to train the reconstructor on: every ratio, several ways of choosing, budgets that differ from frame to frame.

The judge must be right wherever a gaze may be: where nothing is known, where everything is, and on gazes that look
at what changed as well as on blind ones. Each clip draws one way of choosing; a choice is the top of a score, so that
all of it is a few tensor operations on the device and nothing depends on counts.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from autogaze.core.grid import PatchGrid
from autogaze.pretrain.reconstructor.paste import Painter

LEAST_RATIO, MOST_RATIO = 0.01, 1.0
BLIND, COARSE = 0.35, 0.15  # shares of clips: random over scales, coarse scales first; the rest looks at changes


def sample_masks(
    video: Tensor, painter: Painter, generator: torch.Generator | None = None, ratio: Tensor | float | None = None
) -> Tensor:
    """Draw a gaze for every clip.

    Args:
        video: (B, T, 3, H, W) float.
        painter: of the grid.
        generator: on the video's device.
        ratio: (B,) or a number, the mean share of patches a frame; by default log-uniform in 0.01..1.

    Returns:
        (B, T, patches_per_frame) bool.
    """
    clips, frames = video.shape[:2]
    ratio = sample_ratios(clips, video.device, generator) if ratio is None else torch.as_tensor(ratio).to(video.device)
    budgets = sample_budgets(ratio.expand(clips), frames, painter.grid, generator)
    return top_of(sample_scores(video, painter, generator), budgets)


def sample_ratios(clips: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """(clips,) log-uniform in 0.01..1."""
    share = torch.rand(clips, device=device, generator=generator)
    return torch.exp(math.log(LEAST_RATIO) + share * math.log(MOST_RATIO / LEAST_RATIO))


def sample_budgets(
    ratio: Tensor, frames: int, grid: PatchGrid, generator: torch.Generator | None = None, even: float = 0.3
) -> Tensor:
    """Draw how many patches each frame may spend, unevenly over the frames of a clip.

    Args:
        ratio: (B,) mean share of patches a frame.
        frames: of a clip.
        grid: says how many patches there are.
        generator: on the device of `ratio`.
        even: share of clips whose frames all have the same budget.

    Returns:
        (B, frames) int64, at least 1 and at most all patches. Uneven budgets have exponential weights (a flat Dirichlet
        over frames), the first frame with twice its share.
    """
    draws = torch.rand((len(ratio), frames), device=ratio.device, generator=generator)
    weight = -(1 - draws).clamp(min=1e-6).log()
    weight[:, 0] *= 2
    weight = weight / weight.mean(1, keepdim=True)
    same = torch.rand((len(ratio), 1), device=ratio.device, generator=generator) < even
    wanted = ratio[:, None] * grid.patches_per_frame * torch.where(same, 1.0, weight)
    return wanted.round().long().clamp(1, grid.patches_per_frame)


def sample_scores(video: Tensor, painter: Painter, generator: torch.Generator | None = None) -> Tensor:
    """(B, T, patches_per_frame) float: in each frame, patches with a higher score are looked at first."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, device=video.device, generator=generator)

    clips, frames, patches = *video.shape[:2], painter.grid.patches_per_frame
    gumbel = -(-(uniform(clips, frames, patches).clamp(1e-6, 1 - 1e-6)).log()).log()
    taste = -(uniform(clips, 1, len(painter.grid.scales)).clamp(min=1e-6)).log()  # exponential: a flat Dirichlet
    taste = torch.cat(
        [
            part.expand(-1, -1, count)
            for part, count in zip(taste.split(1, -1), painter.grid.patches_per_scale, strict=True)
        ],
        dim=-1,
    ).log()
    order = -torch.arange(patches, device=video.device, dtype=torch.float32)
    blind = taste + gumbel
    coarse = order + gumbel * 3
    seeing = change(video, painter).clamp(min=1e-6).log() * (0.5 + 2.5 * uniform(clips, 1, 1)) + 0.5 * taste + gumbel
    way = uniform(clips, 1, 1)
    return torch.where(way < BLIND, blind, torch.where(way < BLIND + COARSE, coarse, seeing))


def change(video: Tensor, painter: Painter) -> Tensor:
    """Amounts that each patch would show and the frame before does not.

    Returns:
        (B, T, patches_per_frame) float: mean absolute change over the patch's place times the root of its area (as
        a share of the frame); in the first frame, the distance from the clip's mean colour.
    """
    before = torch.cat([video[:, :1].mean((-2, -1), keepdim=True).expand_as(video[:, :1]), video[:, :-1]], dim=1)
    moved = (video.float() - before.float()).abs().mean(2)
    parts = []
    for rows, columns in painter.grid.sides:
        mean = F.adaptive_avg_pool2d(moved, (rows, columns)).flatten(-2)
        parts.append(mean / math.sqrt(rows * columns))
    return torch.cat(parts, dim=-1)


def top_of(scores: Tensor, budgets: Tensor) -> Tensor:
    """(B, T, P) bool: the `budgets` (B, T) highest scores of each frame."""
    rank = scores.argsort(-1, descending=True).argsort(-1)
    return rank < budgets[..., None]
