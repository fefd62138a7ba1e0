"""Difference: the honest opponent of a learned gaze, what plain pixels can say about where to look.

Keeps the last known pixels of every place (mid-grey before anything is known) and spends each frame's budget greedily
on the patches, of any scale, that reduce the absolute error of that picture most. This is RGB-difference gazing
(the baseline of arXiv:2603.12254), made as strong as it can be without a network: it compares with what was
really seen instead of the previous frame, weighs scales against one another, and counts overlaps once.

`DenoisedDifferenceSelector` is the same with what one would try first against sensor noise: frames are blurred before
they are compared, and cells that differ by no more than the noise between the first two frames count little.
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
from autogaze.selectors.canvas import EMPTY, paste_levels, renditions
from autogaze.selectors.lattice import Lattice
from autogaze.selectors.picks import picks_on
from autogaze.selectors.ranking import NEVER, open_video

FRAMES_AT_ONCE = 64  # that are resampled together: bounds the memory
UNCHANGED = 0.5  # weight of an error that noise may have made; not 0, so that the rest of a budget is spent well
STILL_SHARE = 0.1  # of the cells that are taken to show noise alone
HORIZON = 4  # frames, this one among them, that foresight looks at


@dataclass(frozen=True)
class DifferenceSelector:
    """Takes what reduces the residual map most; exactly the budget in every frame."""

    grid: PatchGrid

    @cached_property
    def lattice(self) -> Lattice:
        return Lattice(self.grid)

    def __call__(self, video: Tensor, gazing_ratio: PerFrame, generator: torch.Generator | None = None) -> Gaze:
        """Choose patches; deterministic, `generator` is not used."""
        video, budget = open_video(video, self.grid, gazing_ratio)
        return self.choose(video, budget)

    @torch.no_grad()
    def choose(self, video: Tensor, budget: Tensor, forget: Tensor | None = None) -> Gaze:
        """Choose patches under given budgets.

        Args:
            video: (B, T, 3, height_px, width_px) float.
            budget: (B, T) int64.
            forget: (B, T) bool, frames before which everything known is forgotten (cuts).
        """
        lattice, picks = self.lattice, picks_on(self.lattice, video.device)
        video = self.compared(video)
        threshold = self.threshold(video)
        canvas = torch.zeros_like(video[:, 0])
        widths = budget.amax(0).tolist()  # picks of each frame: the one time that the host waits for the device
        ids = torch.zeros(*budget.shape, max(widths), dtype=torch.int64, device=video.device)
        at_once = max(1, FRAMES_AT_ONCE // len(video))
        for t in range(video.shape[1]):
            if t % at_once == 0:  # many small kernels: for several frames together
                some = video[:, t : t + at_once]
                seen = renditions(some, self.grid)
                left = lattice.pool((some[:, :, None] - seen).abs().mean(3))
            if forget is not None:
                canvas = torch.where(forget[:, t, None, None, None], 0.0, canvas)
            error = lattice.pool((video[:, t] - canvas).abs().mean(1))
            if threshold is not None and t > 0:  # the second frame is there when noise is first asked for
                error = error.where(error > threshold, UNCHANGED * error)
            ids[:, t, : widths[t]], levels = picks.choose(error, left[:, t % at_once], budget[:, t], widths[t])
            canvas = paste_levels(canvas, seen[:, t % at_once], lattice.spread(levels))
        chosen = torch.arange(ids.shape[-1], device=video.device) < budget[..., None]
        return Gaze(ids.where(chosen, 0), chosen, self.grid)

    def compared(self, video: Tensor) -> Tensor:
        """The pixels that are compared, of a video (B, T, 3, H, W)."""
        return video

    def threshold(self, video: Tensor) -> Tensor | None:
        """(B, 1, 1): a cell whose error is not larger may be unchanged; None: every error counts."""
        return None

    @torch.no_grad()
    def gains(self, video: Tensor, gaze: Gaze, group: int, foresight: float = 0.0) -> Tensor:
        """Gains of each patch at every slot of a gaze that somebody else chose.

        Slots come in groups, as a model decodes them. What the gaze chose before a group is known; within the group
        the best patch counts as taken at each slot before.

        Args:
            video: (B, T, 3, height_px, width_px) float.
            gaze: (B, T, K) of the same clips.
            group: slots a group.
            foresight: how much the next frame counts where this one counts 1, the one after that its square, and so on,
                up to `HORIZON` frames: what a patch shows is worth more where it stays as it is.

        Returns:
            (B, T, K, patches_per_frame) float: the residual that the patch would take away, summed over the
            lattice's cells; `NEVER` if it is taken by then, or nothing was chosen in the slot's group.
        """
        clips, frames, slots = gaze.ids.shape
        ids, chosen = (F.pad(x, (0, -slots % group)).unflatten(2, (-1, group)) for x in (gaze.ids, gaze.chosen))
        of_group = torch.zeros(*ids.shape[:3], gaze.grid.patches_per_frame, dtype=torch.uint8, device=video.device)
        of_group = of_group.scatter_add(3, ids, chosen.to(torch.uint8)) > 0
        before = of_group.cumsum(2, dtype=torch.uint8) > of_group  # (B, T, groups, patches_per_frame)
        error, seen_error = self._errors_along(video, gaze, foresight)
        clip, frame, at = chosen.any(-1).nonzero(as_tuple=True)
        search = _Search(self.lattice, error[clip, frame], seen_error[clip, frame], before[clip, frame, at])
        gains = torch.full((*ids.shape, gaze.grid.patches_per_frame), NEVER, dtype=video.dtype, device=video.device)
        for pick in range(group):
            gains[clip, frame, at, pick] = found = search.gains()
            search.take(found)
        return gains.flatten(2, 3)[:, :, :slots]

    def _errors_along(self, video: Tensor, gaze: Gaze, foresight: float) -> tuple[Tensor, Tensor]:
        """`_errors` of all frames before anything is chosen in them, (B, T, rows, columns) and, of every scale,
        (B, T, scales, rows, columns); with foresight their weighted mean over the frames to come."""
        canvas, mask, errors = torch.zeros_like(video[:, 0]), gaze.patch_mask(), []
        for t in range(video.shape[1]):
            seen = renditions(video[:, t], self.grid)
            ahead = [
                _errors(self.lattice, canvas, frame, seen)
                for frame in video[:, t : t + (HORIZON if foresight else 1)].unbind(1)
            ]
            weights = [foresight**k for k in range(len(ahead))]
            errors.append(
                tuple(
                    sum(w * part for w, part in zip(weights, parts, strict=True)) / sum(weights)
                    for parts in zip(*ahead, strict=True)
                )
            )
            canvas = paste_levels(canvas, seen, self.lattice.spread(_levels(self.lattice, mask[:, t])))
        known, of_scale = zip(*errors, strict=True)
        return torch.stack(known, 1), torch.stack(of_scale, 1)


class DenoisedDifferenceSelector(DifferenceSelector):
    """Difference of blurred frames, blind to what noise changes."""

    def compared(self, video: Tensor) -> Tensor:
        """Blurred with the binomial kernel of 5 pixels a side, whose deviation is 1 pixel."""
        line = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=video.dtype, device=video.device) / 16
        planes = F.pad(video.flatten(0, 2)[:, None], (2, 2, 2, 2), mode="replicate")
        planes = F.conv2d(F.conv2d(planes, line.view(1, 1, 1, 5)), line.view(1, 1, 5, 1))
        return planes.view(video.shape)

    def threshold(self, video: Tensor) -> Tensor | None:
        """Noise of the first two frames: what the stillest tenth of the cells differs, and as much again."""
        if video.shape[1] < 2:
            return None
        change = self.lattice.pool((video[:, 1] - video[:, 0]).abs().mean(1)).flatten(1)
        return 2 * change.quantile(STILL_SHARE, dim=1)[:, None, None]


class _Search:
    """The greedy choice in N frames side by side.

    Args:
        error: (N, rows, columns) float, error of what is known in each cell of the lattice.
        seen_error: (N, scales, rows, columns) float, the error that a patch of each scale would leave.
        taken: (N, patches_per_frame) bool, patches of the frame that are chosen already.
    """

    def __init__(self, lattice: Lattice, error: Tensor, seen_error: Tensor, taken: Tensor | None = None) -> None:
        self.lattice, grid, device = lattice, lattice.grid, error.device
        self.cover = lattice.inside(lattice.rectangles(device))  # (patches_per_frame, rows, columns) bool
        self.scale = grid.locate(torch.arange(grid.patches_per_frame, device=device))[0]  # (patches_per_frame,)
        self.scales = torch.arange(len(grid.scales), device=device)[:, None, None]
        self.seen_error = seen_error
        if taken is None:
            self.taken = torch.zeros(len(error), grid.patches_per_frame, dtype=torch.bool, device=device)
            self.levels = torch.full_like(error, EMPTY, dtype=torch.int64)  # scale pasted in each cell
            self.error = error
        else:
            self.taken, self.levels = taken.clone(), _levels(lattice, taken)
            pasted = seen_error.gather(1, self.levels.clamp(min=0)[:, None]).squeeze(1)
            self.error = pasted.where(self.levels != EMPTY, error)

    def gains(self) -> Tensor:
        """(N, patches_per_frame): how much error each patch would take away; finer patches already there stay."""
        cells = (self.error[:, None] - self.seen_error).where(self.levels[:, None] < self.scales, 0.0)
        gains = torch.cat([self.lattice.sums(cells[:, k], k) for k in range(len(self.scales))], dim=-1)
        return gains.masked_fill(self.taken, NEVER)

    def take(self, gains: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Take the best patch of each frame, where that is `allowed` (N,) bool; returns its id (N,)."""
        best = gains.argmax(-1)
        scale = self.scale[best][:, None, None]
        better = self.cover[best] & (self.levels < scale)
        if allowed is not None:
            better = better & allowed[:, None, None]
        error = self.seen_error.gather(1, scale[:, None].expand(-1, 1, *self.error.shape[1:])).squeeze(1)
        self.error, self.levels = error.where(better, self.error), scale.where(better, self.levels)
        self.taken.scatter_(1, best[:, None], True)
        return best


def _errors(lattice: Lattice, canvas: Tensor, frame: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Mean absolute error of each cell: (B, rows, columns) of the canvas, (B, scales, rows, columns) of renditions."""
    return lattice.pool((frame - canvas).abs().mean(1)), lattice.pool((frame[:, None] - seen).abs().mean(2))


def _levels(lattice: Lattice, mask: Tensor) -> Tensor:
    """The scale pasted in each cell (N, rows, columns) by the patches of a mask (N, patches_per_frame)."""
    cover = lattice.inside(lattice.rectangles(mask.device)).flatten(1).float()
    levels = torch.full((len(mask), *lattice.size), EMPTY, dtype=torch.int64, device=mask.device)
    parts = list(lattice.grid.patches_per_scale)
    for k, (of_scale, cells) in enumerate(zip(mask.split(parts, dim=1), cover.split(parts), strict=True)):
        levels = levels.masked_fill((of_scale.float() @ cells > 0).unflatten(1, lattice.size), k)
    return levels
