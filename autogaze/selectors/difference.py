"""Difference: the honest opponent of a learned gaze, what plain pixels can say about where to look.

Keeps the last known pixels of every place (mid-grey before anything is known) and spends each frame's budget greedily
on the patches, of any scale, that reduce the absolute error of that picture most. This is RGB-difference gazing
(the baseline of arXiv:2603.12254), made as strong as it can be without a network: it compares with what was
really seen instead of the previous frame, weighs scales against one another, and counts overlaps once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from autogaze.decoding.request import PerFrame
from autogaze.gaze import Gaze
from autogaze.grid import PatchGrid
from autogaze.selectors.canvas import EMPTY, paste_levels, renditions
from autogaze.selectors.lattice import Lattice
from autogaze.selectors.ranking import NEVER, open_video


@dataclass(frozen=True)
class DifferenceSelector:
    """Takes what reduces the paste error most; exactly the budget in every frame."""

    grid: PatchGrid

    @cached_property
    def lattice(self) -> Lattice:
        return Lattice(self.grid)

    def __call__(self, video: Tensor, gazing_ratio: PerFrame, generator: torch.Generator | None = None) -> Gaze:
        """Choose patches; deterministic, `generator` is not used."""
        video, budget = open_video(video, self.grid, gazing_ratio)
        return self.choose(video, budget)

    @torch.no_grad()
    def choose(self, video: Tensor, budget: Tensor, forget: Tensor | None = None, begun: Gaze | None = None,
               start: Tensor | None = None) -> Gaze:
        """Choose patches under given budgets.

        Args:
            video: (B, T, 3, height_px, width_px) float.
            budget: (B, T) int64.
            forget: (B, T) bool, frames before which everything known is forgotten (cuts).
            begun, start: a gaze of (B, T, K) that is followed before frame `start` (B,); what comes after makes the
                best of what it has seen and missed. Its counts there must be those of `budget`.
        """
        canvas = torch.zeros_like(video[:, 0])
        widths = budget.amax(0).tolist()  # picks of each frame: the one time that the host waits for the device
        width, search = max(widths), _Search(self.lattice, video.device)
        ids = torch.zeros(*budget.shape, width, dtype=torch.int64, device=video.device)
        for t in range(video.shape[1]):
            if forget is not None:
                canvas = torch.where(forget[:, t, None, None, None], 0.0, canvas)
            seen = renditions(video[:, t], self.grid)
            chosen, levels = search.choose(canvas, video[:, t], seen, budget[:, t], widths[t])
            if begun is not None and start is not None:
                given = t < start
                chosen = begun.ids[:, t, : widths[t]].where(given[:, None], chosen)
                levels = search.levels(begun.patch_mask()[:, t]).where(given[:, None, None], levels)
            ids[:, t, : widths[t]] = chosen
            canvas = paste_levels(canvas, seen, self.lattice.spread(levels))
        chosen = torch.arange(width, device=video.device) < budget[..., None]
        return Gaze(ids.where(chosen, 0), chosen, self.grid)


class _Search:
    """The greedy choice in one frame, with the tables it needs on the video's device."""

    def __init__(self, lattice: Lattice, device: torch.device) -> None:
        self.lattice, self.grid = lattice, lattice.grid
        self.cover = lattice.inside(lattice.rectangles(device))  # (patches_per_frame, rows, columns) bool
        ids = torch.arange(self.grid.patches_per_frame, device=device)
        self.scale = self.grid.locate(ids)[0]  # (patches_per_frame,)
        self.scales = torch.arange(len(self.grid.scales), device=device)[:, None, None]

    def choose(self, canvas: Tensor, frame: Tensor, seen: Tensor, budget: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Ids (B, width), of which the first `budget` count, and the scale pasted in each cell (B, rows, columns)."""
        error = self.lattice.pool((frame - canvas).abs().mean(1))  # (B, rows, columns), of what is known now
        seen_error = self.lattice.pool((frame[:, None] - seen).abs().mean(2))  # (B, scales, rows, columns)
        levels = torch.full_like(error, EMPTY, dtype=torch.int64)
        taken = torch.zeros(len(frame), len(self.scale), dtype=torch.bool, device=frame.device)
        ids = torch.zeros(len(frame), width, dtype=torch.int64, device=frame.device)
        allowed = torch.arange(width, device=frame.device)[:, None, None, None] < budget[:, None, None]
        for pick in range(width):
            best = self._gains(error, seen_error, levels).masked_fill(taken, NEVER).argmax(-1)
            scale = self.scale[best][:, None, None]
            better = self.cover[best] & (levels < scale) & allowed[pick]
            new_error = seen_error.gather(1, scale[:, None].expand(-1, 1, *error.shape[1:])).squeeze(1)
            error, levels = new_error.where(better, error), scale.where(better, levels)
            taken.scatter_(1, best[:, None], True)
            ids[:, pick] = best
        return ids, levels

    def levels(self, mask: Tensor) -> Tensor:
        """The scale pasted in each cell (B, rows, columns) by the patches of a mask (B, patches_per_frame)."""
        levels = torch.full((len(mask), *self.lattice.size), EMPTY, dtype=torch.int64, device=mask.device)
        for k, of_scale in enumerate(mask.split(list(self.grid.patches_per_scale), dim=1)):
            start = self.grid.offsets[k]
            cover = self.cover[start : start + of_scale.shape[1]].flatten(1)
            covered = (of_scale.float() @ cover.float() > 0).unflatten(1, self.lattice.size)
            levels = levels.masked_fill(covered, k)
        return levels

    def _gains(self, error: Tensor, seen_error: Tensor, levels: Tensor) -> Tensor:
        """(B, patches_per_frame): how much error each patch would take away; finer patches already there stay."""
        cells = (error[:, None] - seen_error).where(levels[:, None] < self.scales, 0.0)
        return torch.cat([self.lattice.sums(cells[:, k], k) for k in range(len(self.scales))], dim=-1)
