"""Greedy search: which patches, in which order, lower the reconstruction loss of each frame fastest.

*Exact* (the paper's): at each pick every remaining patch is tried, the one with the lowest loss is taken. A pick
costs up to 265 reconstructions of the frame.

*Fast*: patches are screened by how much of the present error pasting them would remove (a few tensor operations for
all patches), the best few are tried, and those of them that lie apart from each other and help nearly as much as the
best are taken together. The screening learns, clip by clip, how far it can be trusted at each scale.

Both record the true loss before the first pick and after every pick.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from autogaze.gaze import Gaze
from autogaze.pretrain.incremental import Sight, attempt, commit, look, start
from autogaze.pretrain.reconstructor import Reconstructor


@dataclass(frozen=True)
class GreedySettings:
    """How a search goes; the defaults of the fast mode keep within 3 % of exact (`python -m benchmarks.labels`)."""

    mode: str = "fast"  # "fast" | "exact"
    candidates: int = 8  # fast: patches tried a pass
    picks: int = 5  # fast: most patches taken a pass
    worth: float = 0.5  # fast: a further pick must gain this share of what the best one gains
    at_once: int = 512  # reconstructions of a frame in one batch: bounds the memory

    def __post_init__(self) -> None:
        if self.mode not in ("fast", "exact"):
            raise ValueError(f"mode must be 'fast' or 'exact', got {self.mode!r}")
        if min(self.candidates, self.picks, self.at_once) < 1 or self.picks > self.candidates:
            raise ValueError(f"candidates, picks and at_once must be positive and picks <= candidates, got {self}")


@dataclass(frozen=True, eq=False)
class GreedyGaze:
    """Chosen patches in the order of choice, and what each choice left."""

    gaze: Gaze
    loss: Tensor  # (B, T, K + 1) float32: before the first pick, after each pick; NaN beyond a frame's budget


@torch.no_grad()
def greedy_gaze(model: Reconstructor, video: Tensor, budgets: Tensor,
                settings: GreedySettings | None = None) -> GreedyGaze:
    """Search every frame of a batch of clips, frame after frame.

    Args:
        model: judges; its device must be that of the video.
        video: (B, T, 3, H, W) float.
        budgets: (B, T) int, patches to choose in each frame, 0 to patches_per_frame.
        settings: exact or fast.

    Raises:
        ValueError: if the budgets do not fit.
    """
    settings = settings or GreedySettings()
    patches = model.grid.patches_per_frame
    if budgets.shape != video.shape[:2] or bool(((budgets < 0) | (budgets > patches)).any()):
        raise ValueError(f"budgets must be {tuple(video.shape[:2])}, 0 to {patches}, got {tuple(budgets.shape)} "
                         f"from {int(budgets.min())} to {int(budgets.max())}")
    search = _exact if settings.mode == "exact" else _fast
    width = int(budgets.max())
    memory, results = start(model, len(video)), []
    for t in range(video.shape[1]):
        sight = look(model, memory, video[:, t])
        found = _Found(sight, budgets[:, t], width, patches)
        found.loss[:, 0] = attempt(model, sight, found.mask[:, None]).loss[:, 0]
        search(model, found, settings)
        memory = commit(model, sight, found.mask)
        results.append(found)
    ids, loss = (torch.stack([getattr(found, name) for found in results], 1) for name in ("ids", "loss"))
    chosen = torch.arange(width, device=video.device) < budgets[..., None]
    return GreedyGaze(Gaze(ids, chosen, model.grid), loss)


class _Found:
    """The growing result of one frame's search."""

    def __init__(self, sight: Sight, budget: Tensor, width: int, patches: int) -> None:
        self.sight, self.budget = sight, budget
        self.ids = torch.zeros(len(budget), width, dtype=torch.int64, device=budget.device)
        self.loss = torch.full((len(budget), width + 1), torch.nan, device=budget.device)
        self.mask = torch.zeros(len(budget), patches, dtype=torch.bool, device=budget.device)
        self.count = torch.zeros_like(budget)

    def open_clips(self) -> Tensor:
        """Indices of the clips that have budget left."""
        return (self.count < self.budget).nonzero()[:, 0]

    def take(self, clips: Tensor, ids: Tensor, loss: Tensor, valid: Tensor) -> None:
        """Append picks (N, M), the valid ones of each row first, with the loss after each."""
        rows = clips[:, None].expand_as(ids)[valid]
        slots = (self.count[clips][:, None] + torch.arange(ids.shape[1], device=ids.device))[valid]
        self.ids[rows, slots], self.loss[rows, slots + 1] = ids[valid], loss[valid]
        self.mask[rows, ids[valid]] = True
        self.count[clips] += valid.sum(1)


def _exact(model: Reconstructor, found: _Found, settings: GreedySettings) -> None:
    pick = 0
    while len(clips := found.open_clips()):
        untaken = found.mask[clips].to(torch.uint8).sort(dim=1, stable=True).indices[:, : found.mask.shape[1] - pick]
        loss = _single(model, found.sight[clips], found.mask[clips], untaken, settings.at_once)
        best = loss.argmin(1, keepdim=True)
        found.take(clips, untaken.gather(1, best), loss.gather(1, best), torch.ones_like(best, dtype=torch.bool))
        pick += 1


def _single(model: Reconstructor, sight: Sight, mask: Tensor, ids: Tensor, at_once: int) -> Tensor:
    """(N, M) loss if each of `ids` (N, M) alone were added to `mask` (N, P)."""
    losses = []
    for part in ids.split(max(1, at_once // len(mask)), dim=1):
        tried = mask[:, None].expand(-1, part.shape[1], -1).scatter(2, part[..., None], True)
        losses.append(attempt(model, sight, tried).loss)
    return torch.cat(losses, dim=1)


def _fast(model: Reconstructor, found: _Found, settings: GreedySettings) -> None:
    screen = _Screen(model, found.sight)
    frames = attempt(model, found.sight, found.mask[:, None]).frames[:, 0]
    loss = found.loss[:, 0].clone()
    while len(clips := found.open_clips()):
        whole = len(clips) == len(found.budget)
        sight, mask = found.sight if whole else found.sight[clips], found.mask[clips]
        expected = screen.gains(clips, frames[clips]).masked_fill(mask, -torch.inf)
        expected, ids = expected.topk(min(settings.candidates, expected.shape[1]), dim=1)
        gains = loss[clips, None] - _single(model, sight, mask, ids, settings.at_once)
        usable = expected > -torch.inf
        screen.learn(clips, ids, expected, gains, usable)
        order = gains.masked_fill(~usable, -torch.inf).argsort(1, descending=True)
        ids, gains, usable = ids.gather(1, order), gains.gather(1, order), usable.gather(1, order)
        left = (found.budget - found.count)[clips]
        picks, valid = apart(screen.overlap, ids, gains, usable, left, settings)
        added = F.one_hot(picks, mask.shape[1]).bool() & valid[..., None]
        trial = attempt(model, sight, mask[:, None] | added.cumsum(1).bool())
        last = (valid.sum(1) - 1)[:, None]
        frames[clips] = trial.frames.take_along_dim(last[..., None, None, None], 1)[:, 0]
        loss[clips] = trial.loss.gather(1, last)[:, 0]
        found.take(clips, picks, trial.loss, valid)


def apart(overlap: Tensor, ids: Tensor, gains: Tensor, usable: Tensor, left: Tensor,
          settings: GreedySettings) -> tuple[Tensor, Tensor]:
    """Which of some tried patches to take together.

    Args:
        overlap: (P, P) bool, patches that share a place.
        ids: (N, M) int64, best first; the first is always taken.
        gains: (N, M) float, what each gains alone.
        usable: (N, M) bool.
        left: (N,) int, budget.
        settings: how many, and how good.

    Returns:
        ids (N, at most `picks`) and which of them are valid, those first.
    """
    taken = torch.zeros_like(usable)
    taken[:, 0] = True
    for m in range(1, ids.shape[1]):
        meets = (overlap[ids[:, m, None], ids[:, :m]] & taken[:, :m]).any(1)
        worth = usable[:, m] & (gains[:, m] >= settings.worth * gains[:, 0]) & (gains[:, m] > 0)
        taken[:, m] = worth & ~meets & (taken.sum(1) < left.clamp(max=settings.picks))
    order = (~taken).to(torch.uint8).sort(dim=1, stable=True).indices[:, : settings.picks]
    return ids.gather(1, order), taken.gather(1, order)


class _Screen:
    """What pasting each patch of a frame would gain, from the error of the present reconstruction."""

    def __init__(self, model: Reconstructor, sight: Sight) -> None:
        self.block, self.grid = model.block_side, model.grid
        self.target = sight.target
        self.errors = [self._pool(image, sight.target) for image in sight.new_full]
        self.rows = [self._members(model, "y", k) for k in range(len(self.errors))]
        self.columns = [self._members(model, "x", k) for k in range(len(self.errors))]
        self.trust = torch.ones(len(sight), len(self.errors), device=sight.target.device)
        cover = model.grid.cover().flatten(1).float().to(sight.target.device)
        self.overlap = cover @ cover.T > 0
        self.scale_of = torch.repeat_interleave(torch.tensor(model.grid.patches_per_scale)).to(sight.target.device)

    def gains(self, clips: Tensor, frames: Tensor) -> Tensor:
        """(N, P) loss that each patch is expected to remove, given the frames (N, 3, H, W) rebuilt so far."""
        now = self._pool(frames, self.target[clips])
        gains = [(rows @ (now - error[clips]).relu() @ columns.T).flatten(1) / now[0].numel()
                 for error, rows, columns in zip(self.errors, self.rows, self.columns, strict=True)]
        return torch.cat(gains, dim=1) * self.trust[clips][:, self.scale_of]

    def learn(self, clips: Tensor, ids: Tensor, expected: Tensor, gains: Tensor, usable: Tensor) -> None:
        """Move each scale's trust half the way to what its tried patches really gained."""
        scale = F.one_hot(self.scale_of[ids], self.trust.shape[1]) * usable[..., None]
        hoped = (scale * expected.where(usable, 0.0)[..., None]).sum(1)
        found = (scale * gains.clamp(min=0)[..., None]).sum(1)
        change = (found / hoped.clamp(min=1e-9)).clamp(0.25, 4.0).sqrt()
        self.trust[clips] = (self.trust[clips] * change.where(hoped > 0, 1.0)).clamp(0.05, 5.0)

    def _pool(self, image: Tensor, target: Tensor) -> Tensor:
        """(N, rows, columns) mean absolute difference of small blocks."""
        return F.avg_pool2d((image - target).abs().mean(1, keepdim=True), self.block)[:, 0]

    def _members(self, model: Reconstructor, axis: str, k: int) -> Tensor:
        """(cells, blocks) float: which blocks of a line lie in which cell of scale k."""
        cell = getattr(model.painter, f"full_cell_{axis}{k}")[self.block // 2 :: self.block]
        return F.one_hot(cell, self.grid.sides[k][axis == "x"]).T.float()
