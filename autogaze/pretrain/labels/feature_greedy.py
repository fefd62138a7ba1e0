"""Greedy search on the pasted picture, with any distance: what a ViT would want to be shown.

    found = greedy_features(distance, video, budgets, PatchGrid())     # distance: autogaze.pretrain.distance

Frame after frame, each pick takes the patch after which the pasted picture (`reconstructor.paste`: no network) is
nearest to the true frame. Trying all 265 patches at every pick would cost 265 passes of the ViT. Instead a few
candidates are tried exactly, all clips and candidates in one batch, and three cheap lists nominate them in turn:

- patches over tokens that are far from their true features, less how far they are when the whole frame is shown at
  the scale of the patch (a pass a scale and frame, none a pick);
- the best runners-up of the picks before, which were tried already and do not overlap what was taken since;
- patches that remove most absolute pixel error.

The gradient of the distance does not help: a patch changes more than a first-order estimate can follow. With as many
candidates as patches the search is exhaustive.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from autogaze.core.gaze import Gaze
from autogaze.core.grid import PatchGrid
from autogaze.pretrain.distance import Distance, Target, resized
from autogaze.pretrain.labels.greedy import GreedyGaze, apart
from autogaze.pretrain.reconstructor.paste import Painter, check_video
from autogaze.selectors.canvas import EMPTY
from autogaze.selectors.lattice import Lattice

NEVER = float("-inf")  # estimated gain of a patch that is not to be tried


@dataclass(frozen=True, eq=False)
class PastedPictures:
    """A judge of labels in place of a reconstructor: a distance of pasted pictures."""

    distance: Distance
    name: str  # tells one from another in a file of labels
    grid: PatchGrid


@dataclass(frozen=True)
class FeatureSearch:
    """Settings of a search on features."""

    candidates: int = 12  # patches tried exactly at each pick
    picks: int = 1  # most patches taken at once, where they do not overlap
    worth: float = 0.8  # of several: a further one must gain this share of what the best one gains
    at_once: int = 1024  # pictures in one batch of the ViT: bounds the memory

    def __post_init__(self) -> None:
        if min(self.candidates, self.picks, self.at_once) < 1:
            raise ValueError(f"candidates, picks and at_once must be positive, got {self}")


def greedy_features(
    distance: Distance,
    video: Tensor,
    budgets: Tensor,
    grid: PatchGrid,
    settings: FeatureSearch | None = None,
    truth: Tensor | None = None,
) -> GreedyGaze:
    """Search every frame of a batch of clips.

    Args:
        distance: between pictures; on the video's device. On a GPU it runs in bfloat16.
        video: (B, T, 3, H, W) float as a preprocessor returns it, of the size of the grid.
        budgets: (B, T) int64, patches to choose in each frame, 0 to patches_per_frame.
        grid: of the gaze.
        settings: how many are tried.
        truth: of the video's shape, what pictures are compared with; None: the video.

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
            shown, wanted = (part[:, t].float() for part in (video, video if truth is None else truth))
            frame = _Frame(geometry, distance, shown, wanted, canvas, budgets[:, t], width)
            frame.search(settings)
            canvas = frame.picture
            frames.append(frame)
    ids, loss = (torch.stack([getattr(frame, name) for frame in frames], 1) for name in ("ids", "loss"))
    chosen = torch.arange(width, device=video.device) < budgets[..., None]
    return GreedyGaze(Gaze(ids, chosen, grid), loss)


class _Geometry:
    """Tables of a grid, made once: painter, lattice, which patches overlap."""

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
        far: (B, rows, columns), the map of the distance of what is shown.
    """

    def __init__(
        self,
        geometry: _Geometry,
        distance: Distance,
        frame: Tensor,
        truth: Tensor,
        canvas: Tensor,
        budget: Tensor,
        width: int,
    ) -> None:
        self.geometry, self.distance, self.budget = geometry, distance, budget
        self.frame, self.picture = frame, canvas.clone()
        self.seen, self.target = geometry.renditions(frame), distance.target(truth)
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
        self.loss[:, 0], self.far = self._measure(self.picture, self.target, settings.at_once)
        scales = self.seen.shape[1]
        target = tuple(part.repeat_interleave(scales, 0) for part in self.target)
        at_scale = self._measure(self.seen.flatten(0, 1), target, settings.at_once)[1]
        self.far_at_scale = at_scale.unflatten(0, (-1, scales))
        while len(clips := (self.count < self.budget).nonzero()[:, 0]):
            loss = self.loss[clips, self.count[clips]]
            ids, usable = self._nominate(clips, settings.candidates)
            found, maps = self._try(clips, ids, settings.at_once)
            gains = (loss[:, None] - found).masked_fill(~usable, NEVER)
            self.tried[clips] = self.tried[clips].scatter(1, ids, gains)
            order = gains.argsort(1, descending=True)
            ids, gains = ids.gather(1, order), gains.gather(1, order)
            limit = (self.budget - self.count)[clips].clamp(max=settings.picks)
            picks, valid = apart(self.geometry.overlap, ids, gains, gains > NEVER, limit, settings.worth)
            self._take(clips, picks, valid)
            if settings.picks == 1:
                after, far = loss - gains[:, 0], maps[torch.arange(len(clips), device=ids.device), order[:, 0]]
            else:
                after, far = self._measure(self.picture[clips], _rows(self.target, clips), settings.at_once)
            self.loss[clips, self.count[clips]], self.far[clips] = after, far

    def _nominate(self, clips: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Candidates (N, count) of some clips, and which of them may be taken: the heads of three lists, in turn."""
        geometry, levels, taken = self.geometry, self.levels[clips], self.taken[clips]
        shown = levels[:, None] < torch.arange(self.seen.shape[1], device=levels.device)[:, None, None]
        error = geometry.lattice.pool((self.frame[clips] - self.picture[clips]).abs().mean(1))
        far = (self.far[clips][:, None] - self.far_at_scale[clips]).relu()
        lists = (
            geometry.sums(far.where(shown, 0.0)),
            self.tried[clips],
            geometry.sums((error[:, None] - self.error[clips]).where(shown, 0.0)),
        )
        ranks = [_ranks(gains.masked_fill(taken, NEVER)) for gains in lists]
        turn = torch.stack([len(ranks) * rank + n for n, rank in enumerate(ranks)]).amin(0)
        turn = turn.masked_fill(taken, len(ranks) * (taken.shape[1] + 1))
        ids = turn.topk(min(count, taken.shape[1]), dim=1, largest=False).indices
        return ids, ~taken.gather(1, ids)

    def _try(self, clips: Tensor, ids: Tensor, at_once: int) -> tuple[Tensor, Tensor]:
        """Distance (N, M), and its map (N, M, rows, columns), if each patch of `ids` (N, M) alone were taken."""
        rows, losses, maps = clips[:, None].expand(ids.shape).flatten(), [], []
        for row, patch in zip(rows.split(at_once), ids.flatten().split(at_once), strict=True):
            loss, local = self._measure(self._with(row, patch), _rows(self.target, row), at_once)
            losses.append(loss)
            maps.append(local)
        return torch.cat(losses).view(ids.shape), torch.cat(maps).unflatten(0, ids.shape)

    def _with(self, rows: Tensor, patches: Tensor) -> Tensor:
        """(N, 3, H, W): what clips `rows` (N,) show after one more patch each."""
        scale = self.geometry.scale[patches]
        shows = self.geometry.cover[patches] & (self.levels[rows] < scale[:, None, None])
        pixels = self.geometry.lattice.spread(shows)[:, None]
        return self.seen[rows, scale].where(pixels, self.picture[rows])

    @torch.no_grad()
    def _measure(self, pictures: Tensor, target: Target, at_once: int) -> tuple[Tensor, Tensor]:
        """Distance (N,) of pictures, and its map (N, rows, columns) on the lattice."""
        losses, maps, size = [], [], self.geometry.lattice.size
        for start in range(0, len(pictures), at_once):
            some = slice(start, start + at_once)
            loss, local = self.distance.with_map(pictures[some], _rows(target, some))
            losses.append(loss)
            maps.append(resized(local, size))
        return torch.cat(losses), torch.cat(maps)

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
