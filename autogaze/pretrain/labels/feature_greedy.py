"""Greedy search on the pasted picture, with any distance: what a ViT would want to be shown.

    found = greedy_features(distance, video, budgets, PatchGrid())     # distance: autogaze.pretrain.distance

Frame after frame, each pick takes the patch after which the pasted picture (`reconstructor.paste`: no network) is
nearest to the true frame. Trying all 265 patches at every pick would cost 265 passes of the ViT. Instead a few
candidates are tried exactly, all clips and candidates in one batch, and three cheap lists nominate them in turn:

- patches that remove most absolute pixel error;
- patches whose pixels lie down the gradient of the distance: one backward pass estimates the gain of all of them;
- the best runners-up of the picks before, which were tried already and do not overlap what was taken since.

With as many candidates as patches the search is exhaustive.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from autogaze.core.gaze import Gaze
from autogaze.core.grid import PatchGrid
from autogaze.pretrain.distance import Distance, Target
from autogaze.pretrain.labels.greedy import GreedyGaze, apart
from autogaze.pretrain.reconstructor.paste import Painter, check_video
from autogaze.selectors.canvas import EMPTY
from autogaze.selectors.lattice import Lattice

NEVER = float("-inf")  # estimated gain of a patch that is not to be tried


@dataclass(frozen=True)
class FeatureSearch:
    """How a search on features goes."""

    candidates: int = 12  # patches tried exactly at each pick
    picks: int = 1  # most patches taken at once, where they do not overlap
    worth: float = 0.8  # of several: a further one must gain this share of what the best one gains
    at_once: int = 1024  # pictures in one batch of the ViT: bounds the memory

    def __post_init__(self) -> None:
        if min(self.candidates, self.picks, self.at_once) < 1:
            raise ValueError(f"candidates, picks and at_once must be positive, got {self}")


def greedy_features(
    distance: Distance, video: Tensor, budgets: Tensor, grid: PatchGrid, settings: FeatureSearch | None = None
) -> GreedyGaze:
    """Search every frame of a batch of clips.

    Args:
        distance: between pictures; on the video's device. On a GPU it runs in bfloat16.
        video: (B, T, 3, H, W) float as a preprocessor returns it, of the size of the grid.
        budgets: (B, T) int64, patches to choose in each frame, 0 to patches_per_frame.
        grid: of the gaze.
        settings: how many are tried.

    Returns:
        the choices in their order, and the distance (B, T, K + 1) before the first and after each; NaN beyond a
        frame's budget, and between patches that were taken at once.

    Raises:
        ValueError: if video, budgets and grid do not fit.
    """
    check_video(video, grid)
    if budgets.shape != video.shape[:2] or bool(((budgets < 0) | (budgets > grid.patches_per_frame)).any()):
        raise ValueError(
            f"budgets must be {tuple(video.shape[:2])}, 0 to {grid.patches_per_frame}, got {tuple(budgets.shape)} "
            f"from {int(budgets.min())} to {int(budgets.max())}"
        )
    settings, budgets = settings or FeatureSearch(), budgets.to(video.device)
    geometry = _Geometry(grid, video.device)
    width = int(budgets.max())
    canvas, frames = torch.zeros_like(video[:, 0], dtype=torch.float32), []
    with torch.autocast(video.device.type, torch.bfloat16, enabled=video.device.type == "cuda"):
        for t in range(video.shape[1]):
            frame = _Frame(geometry, distance, video[:, t].float(), canvas, budgets[:, t], width)
            frame.search(settings)
            canvas = frame.picture
            frames.append(frame)
    ids, loss = (torch.stack([getattr(frame, name) for frame in frames], 1) for name in ("ids", "loss"))
    chosen = torch.arange(width, device=video.device) < budgets[..., None]
    return GreedyGaze(Gaze(ids, chosen, grid), loss)


class _Geometry:
    """What a grid gives once: painter, lattice, which patches overlap."""

    def __init__(self, grid: PatchGrid, device: torch.device) -> None:
        self.grid, self.lattice, self.painter = grid, Lattice(grid), Painter(grid).to(device)
        self.cover = self.lattice.inside(self.lattice.rectangles(device))  # (P, rows, columns) bool
        cells = self.cover.flatten(1).float()
        self.overlap = cells @ cells.T > 0  # (P, P) bool
        self.scale = grid.locate(torch.arange(grid.patches_per_frame, device=device))[0]  # (P,)
        self.cell_px = grid.height_px * grid.width_px / (self.lattice.size[0] * self.lattice.size[1])

    def renditions(self, frame: Tensor) -> Tensor:
        """(B, scales, 3, H, W): frames (B, 3, H, W) as each scale shows them."""
        return torch.stack([self.painter.paint(k, image) for k, image in enumerate(self.painter.cut(frame))], 1)

    def sums(self, cells: Tensor) -> Tensor:
        """(N, P): values (N, scales, rows, columns), summed over the cells of each patch of their scale."""
        return torch.cat([self.lattice.sums(cells[:, k], k) for k in range(cells.shape[1])], dim=-1)


class _Frame:
    """The growing choice in one frame of every clip.

    Attributes:
        ids (B, K) and loss (B, K + 1): found so far.
        picture: (B, 3, H, W), what is shown after the picks so far.
        levels: (B, rows, columns), the scale shown in each cell, `EMPTY` where it is older than this frame.
    """

    def __init__(
        self, geometry: _Geometry, distance: Distance, frame: Tensor, canvas: Tensor, budget: Tensor, width: int
    ) -> None:
        self.geometry, self.distance, self.budget = geometry, distance, budget
        self.frame, self.picture = frame, canvas.clone()
        self.seen, self.target = geometry.renditions(frame), distance.target(frame)
        lattice, clips, patches = geometry.lattice, len(frame), geometry.grid.patches_per_frame
        self.error = lattice.pool((frame[:, None] - self.seen).abs().mean(2))  # (B, scales, rows, columns)
        self.levels = torch.full((clips, *lattice.size), EMPTY, dtype=torch.int64, device=frame.device)
        self.ids = torch.zeros(clips, width, dtype=torch.int64, device=frame.device)
        self.loss = torch.full((clips, width + 1), torch.nan, device=frame.device)
        self.taken = torch.zeros(clips, patches, dtype=torch.bool, device=frame.device)
        self.tried = torch.full((clips, patches), NEVER, device=frame.device)  # gains that were found exactly
        self.count = torch.zeros_like(budget)

    def search(self, settings: FeatureSearch) -> None:
        """Pick until every clip's budget is spent."""
        self.loss[:, 0] = self._distance(self.picture, self.target, settings.at_once)
        while len(clips := (self.count < self.budget).nonzero()[:, 0]):
            loss, gradient = self._gradient(clips, settings.at_once)
            ids, usable = self._nominate(clips, gradient, settings.candidates)
            found = self._try(clips, ids, settings.at_once)
            gains = (loss[:, None] - found).masked_fill(~usable, NEVER)
            self.tried[clips] = self.tried[clips].scatter(1, ids, gains)
            order = gains.argsort(1, descending=True)
            ids, gains = ids.gather(1, order), gains.gather(1, order)
            limit = (self.budget - self.count)[clips].clamp(max=settings.picks)
            picks, valid = apart(self.geometry.overlap, ids, gains, gains > NEVER, limit, settings.worth)
            self._take(clips, picks, valid)
            after = loss - gains[:, 0]
            if settings.picks > 1:
                after = self._distance(self.picture[clips], _rows(self.target, clips), settings.at_once)
            self.loss[clips, self.count[clips]] = after

    def _gradient(self, clips: Tensor, at_once: int) -> tuple[Tensor, Tensor]:
        """Distance (N,) of what some clips show, and its gradient (N, 3, H, W)."""
        losses, gradients = [], []
        for part in clips.split(at_once):
            with torch.enable_grad():
                picture = self.picture[part].detach().requires_grad_()
                loss = self.distance(picture, _rows(self.target, part))
                gradients.append(torch.autograd.grad(loss.sum(), picture)[0])
            losses.append(loss.detach())
        return torch.cat(losses), torch.cat(gradients)

    def _nominate(self, clips: Tensor, gradient: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Candidates (N, count) of some clips, and which of them may be taken: the heads of three lists, in turn."""
        geometry, seen, levels = self.geometry, self.seen[clips], self.levels[clips]
        scales = torch.arange(seen.shape[1], device=seen.device)[:, None, None]
        shown = levels[:, None] < scales  # where a patch of each scale would show
        error = geometry.lattice.pool((self.frame[clips] - self.picture[clips]).abs().mean(1))
        pixels = geometry.sums((error[:, None] - self.error[clips]).where(shown, 0.0))
        slope = (gradient[:, None] * (self.picture[clips][:, None] - seen)).sum(2)
        slopes = geometry.sums(geometry.lattice.pool(slope).where(shown, 0.0))
        taken = self.taken[clips]
        ranks = [_ranks(gains.masked_fill(taken, NEVER)) for gains in (pixels, slopes, self.tried[clips])]
        place = torch.stack([3 * rank + n for n, rank in enumerate(ranks)]).amin(0)
        ids = place.masked_fill(taken, 3 * taken.shape[1]).topk(min(count, taken.shape[1]), dim=1, largest=False)[1]
        return ids, ~taken.gather(1, ids)

    def _try(self, clips: Tensor, ids: Tensor, at_once: int) -> Tensor:
        """Distance (N, M) if each patch of `ids` (N, M) alone were taken."""
        shape, flat = ids.shape, ids.flatten()
        rows = clips[:, None].expand(shape).flatten()
        losses = []
        for row, patch in zip(rows.split(at_once), flat.split(at_once), strict=True):
            pictures = self._with(row, patch)
            losses.append(self._distance(pictures, _rows(self.target, row), at_once))
        return torch.cat(losses).view(shape)

    def _with(self, rows: Tensor, patches: Tensor) -> Tensor:
        """(N, 3, H, W): what clips `rows` (N,) show after one more patch each."""
        scale = self.geometry.scale[patches]
        shows = self.geometry.cover[patches] & (self.levels[rows] < scale[:, None, None])
        pixels = self.geometry.lattice.spread(shows)[:, None]
        return self.seen[rows, scale].where(pixels, self.picture[rows])

    @torch.no_grad()
    def _distance(self, pictures: Tensor, target: Target, at_once: int) -> Tensor:
        parts = [
            self.distance(pictures[i : i + at_once], _rows(target, slice(i, i + at_once)))
            for i in range(0, len(pictures), at_once)
        ]
        return torch.cat(parts)

    def _take(self, clips: Tensor, picks: Tensor, valid: Tensor) -> None:
        """Take patches (N, M) of some clips, the valid ones of each row first; they do not overlap."""
        geometry = self.geometry
        for patch, good in zip(picks.unbind(1), valid.unbind(1), strict=True):
            rows, patch = clips[good], patch[good]
            self.picture[rows] = self._with(rows, patch)
            scale, levels = geometry.scale[patch][:, None, None], self.levels[rows]
            self.levels[rows] = scale.where(geometry.cover[patch] & (levels < scale), levels)
            self.ids[rows, self.count[rows]] = patch
            self.taken[rows, patch] = True
            self.tried[rows] = self.tried[rows].masked_fill(geometry.overlap[patch], NEVER)
            self.count[rows] += 1


def _rows(target: Target, rows: Tensor | slice) -> Target:
    return tuple(part[rows] for part in target)


def _ranks(gains: Tensor) -> Tensor:
    """(N, P) int64: each one's place among its row, 0 the best; those that are `NEVER` come after every other list."""
    order = gains.argsort(1, descending=True)
    places = torch.arange(gains.shape[1], device=gains.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).where(gains > NEVER, gains.shape[1])
