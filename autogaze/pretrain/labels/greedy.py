"""Greedy search: which patches, in which order, lower the reconstruction loss of each frame fastest.

*Exact* (the paper's): at each pick every remaining patch is tried, the one with the lowest loss is taken. A pick
costs up to 265 reconstructions of the frame.

*Fast*: patches are screened by how much of the present error pasting them would remove (a few tensor operations for
all patches); the best of them that lie apart from each other and promise nearly as much are taken together, and one
reconstruction a pick tells what they really gained. From that the screening learns, clip by clip, how far it can be
trusted at each scale. With `candidates` the best few are tried alone before any is taken.

Both record the true loss before the first pick and after every pick.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from autogaze.core.checks import check_options
from autogaze.core.gaze import Gaze
from autogaze.pretrain.reconstructor.network import Reconstructor
from autogaze.pretrain.reconstructor.search import Sight, attempt, commit, look, start

MOST_PADDING = 16  # reconstructions for nothing that cost less than one batch more
# Batches of a search have hundreds of sizes; cuDNN's attention plans each anew, which takes longer than it saves.
ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass(frozen=True)
class GreedySettings:
    """Settings of a search; the defaults of the fast mode keep within 3 % of exact (`python -m benchmarks.labels`)."""

    mode: Literal["fast", "exact"] = "fast"
    candidates: int = 0  # fast: patches tried a pass; 0 takes what the screening says untried
    picks: int = 1  # fast: most patches taken a pass
    share: int = 8  # fast: more are taken where the budget left is larger: a share-th of it
    worth: float = 0.7  # fast: a further pick must gain this share of what the best one gains
    at_once: int = 256  # reconstructions of a frame in one batch: bounds the memory

    def __post_init__(self) -> None:
        check_options(self)
        if min(self.picks, self.share, self.at_once) < 1 or self.candidates < 0:
            raise ValueError(f"picks, share and at_once must be positive and candidates not negative, got {self}")


@dataclass(frozen=True, eq=False)
class GreedyGaze:
    """Chosen patches in the order of choice, and what each choice left."""

    gaze: Gaze
    loss: Tensor  # (B, T, K + 1) float32: before the first pick, after each pick; NaN beyond a frame's budget


@torch.no_grad()
def greedy_gaze(
    model: Reconstructor, video: Tensor, budgets: Tensor, settings: GreedySettings | None = None
) -> GreedyGaze:
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
        raise ValueError(
            f"budgets must be {tuple(video.shape[:2])}, 0 to {patches}, got {tuple(budgets.shape)} "
            f"from {int(budgets.min())} to {int(budgets.max())}"
        )
    search = _exact if settings.mode == "exact" else _fast
    width = int(budgets.max())
    memory, results = start(model, len(video)), []
    with sdpa_kernel(ATTENTION):
        for t in range(video.shape[1]):
            sight = look(model, memory, video[:, t])
            found = _Found(model, sight, budgets[:, t], width)
            search(model, found, settings)
            memory = commit(model, sight, found.mask)
            results.append(found)
    ids, loss = (torch.stack([getattr(found, name) for found in results], 1) for name in ("ids", "loss"))
    chosen = torch.arange(width, device=video.device) < budgets[..., None]
    return GreedyGaze(Gaze(ids, chosen, model.grid), loss)


class _Found:
    """The growing result of one frame's search."""

    def __init__(self, model: Reconstructor, sight: Sight, budget: Tensor, width: int) -> None:
        self.sight, self.budget = sight, budget
        self.ids = torch.zeros(len(budget), width, dtype=torch.int64, device=budget.device)
        self.loss = torch.full((len(budget), width + 1), torch.nan, device=budget.device)
        self.mask = torch.zeros_like(sight.memory.age, dtype=torch.bool)
        self.count = torch.zeros_like(budget)
        unseen = attempt(model, sight, self.mask[:, None])
        self.frames, self.loss[:, 0] = unseen.frames[:, 0], unseen.loss[:, 0]  # before the first pick

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
    frames, loss = found.frames, found.loss[:, 0].clone()
    while len(clips := found.open_clips()):
        mask = found.mask[clips]
        expected = screen.gains(clips, frames[clips]).masked_fill(mask, -torch.inf)
        left = (found.budget - found.count)[clips]
        limit = (left // settings.share).clamp(min=settings.picks).minimum(left)
        gains, ids = expected.topk(min(settings.candidates or 4 * int(limit.max()), expected.shape[1]), dim=1)
        usable = gains > -torch.inf
        if settings.candidates:
            tried = _single(model, found.sight[clips], mask, ids, settings.at_once)
            hoped, gains = gains, loss[clips, None] - tried
            screen.learn(clips, ids, hoped, gains, usable)
            order = gains.masked_fill(~usable, -torch.inf).argsort(1, descending=True)
            ids, gains, usable = ids.gather(1, order), gains.gather(1, order), usable.gather(1, order)
        picks, valid = apart(screen.overlap, ids, gains, usable, limit, settings.worth)
        after, frames[clips] = _in_turn(model, found.sight, clips, mask, picks, valid, settings.at_once)
        if not settings.candidates:
            steps = torch.cat([loss[clips, None], after], dim=1).diff(dim=1).neg()
            screen.learn(clips, picks, expected.gather(1, picks), steps, valid)
        loss[clips] = after.gather(1, valid.sum(1, keepdim=True) - 1)[:, 0]
        found.take(clips, picks, after, valid)


def _in_turn(
    model: Reconstructor, sight: Sight, clips: Tensor, mask: Tensor, picks: Tensor, valid: Tensor, at_once: int
) -> tuple[Tensor, Tensor]:
    """Take picks (N, M) of some clips (N,) of a sight one after the other: the loss after each (N, M), and the frames
    (N, 3, H, W) after the last."""
    loss = torch.zeros(picks.shape, device=picks.device)
    frames = sight.target.new_empty(len(clips), *sight.target.shape[1:])
    counts, order = valid.sum(1).sort(descending=True)
    for group, width in _groups(counts.tolist(), at_once):
        rows = order[group]
        added = F.one_hot(picks[rows, :width], mask.shape[1]).bool() & valid[rows, :width, None]
        trial = attempt(model, sight[clips[rows]], mask[rows, None] | added.cumsum(1).bool())
        loss[rows, :width] = trial.loss
        last = valid[rows].sum(1) - 1
        frames[rows] = trial.frames[torch.arange(len(rows), device=rows.device), last]
    return loss, frames


def _groups(sizes: Sequence[int], at_once: int) -> Iterator[tuple[slice, int]]:
    """Clips that take about as many patches, given how many each takes, most first: which, and how many at most."""
    start, padding = 0, 0
    for end in range(1, len(sizes) + 1):
        most = sizes[start]
        padding += most - sizes[min(end, len(sizes) - 1)]
        if end == len(sizes) or (end + 1 - start) * most > at_once or padding > MOST_PADDING:
            yield slice(start, end), most
            start, padding = end, 0


def apart(
    overlap: Tensor, ids: Tensor, gains: Tensor, usable: Tensor, limit: Tensor, worth: float
) -> tuple[Tensor, Tensor]:
    """Choose the patches to take together: those that no better one shares a place with.

    Args:
        overlap: (P, P) bool, patches that share a place.
        ids: (N, M) int64, best first; the first one is always taken.
        gains: (N, M) float, what each gains alone.
        usable: (N, M) bool.
        limit: (N,) int, most to take.
        worth: a further one must gain this share of what the best one gains.

    Returns:
        ids (N, M') and which of them are valid, those first.
    """
    good = usable & (gains >= worth * gains[:, :1]) & (gains > 0)
    good[:, 0] = True
    better = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril(-1)
    meets = (overlap[ids[:, :, None], ids[:, None]] & better & good[:, None]).any(2)
    taken = good & ~meets
    taken &= taken.cumsum(1) <= limit[:, None]
    order = (~taken).to(torch.uint8).sort(dim=1, stable=True).indices[:, : int(taken.sum(1).max())]
    return ids.gather(1, order), taken.gather(1, order)


class _Screen:
    """Gains of pasting each patch of a frame, from the error of the present reconstruction."""

    def __init__(self, model: Reconstructor, sight: Sight) -> None:
        self.block, self.grid, self.objective = model.block_side, model.grid, model.objective
        self.blocks = (self.grid.height_px // self.block, self.grid.width_px // self.block)
        self.target = sight.target
        self.errors = [self.objective.local(image, sight.target, self.blocks) for image in sight.new_full]
        self.rows = [self._members(model, "y", k) for k in range(len(self.errors))]
        self.columns = [self._members(model, "x", k) for k in range(len(self.errors))]
        self.trust = torch.ones(len(sight), len(self.errors), device=sight.target.device)
        cover = model.grid.cover().flatten(1).float().to(sight.target.device)
        self.overlap = cover @ cover.T > 0
        self.scale_of = torch.repeat_interleave(torch.tensor(model.grid.patches_per_scale)).to(sight.target.device)

    def gains(self, clips: Tensor, frames: Tensor) -> Tensor:
        """(N, P) loss that each patch is expected to remove, given the frames (N, 3, H, W) rebuilt so far."""
        now = self.objective.local(frames, self.target[clips], self.blocks)
        with torch.autocast(frames.device.type, enabled=False):
            gains = [
                (rows @ (now - error[clips]).relu() @ columns.T).flatten(1) / now[0].numel()
                for error, rows, columns in zip(self.errors, self.rows, self.columns, strict=True)
            ]
        return torch.cat(gains, dim=1) * self.trust[clips][:, self.scale_of]

    def learn(self, clips: Tensor, ids: Tensor, expected: Tensor, gains: Tensor, usable: Tensor) -> None:
        """Move each scale's trust half the way to what its tried patches really gained."""
        scale = F.one_hot(self.scale_of[ids], self.trust.shape[1]) * usable[..., None]
        hoped = (scale * expected.where(usable, 0.0)[..., None]).sum(1)
        found = (scale * gains.clamp(min=0)[..., None]).sum(1)
        change = (found / hoped.clamp(min=1e-9)).clamp(0.25, 4.0).sqrt()
        self.trust[clips] = (self.trust[clips] * change.where(hoped > 0, 1.0)).clamp(0.05, 5.0)

    def _members(self, model: Reconstructor, axis: str, k: int) -> Tensor:
        """(cells, blocks) float: which blocks of a line lie in which cell of scale k."""
        patch, columns = getattr(model.painter, f"full_patch{k}"), self.grid.sides[k][1]
        cell = patch[:, 0] // columns if axis == "y" else patch[0] % columns
        return F.one_hot(cell[self.block // 2 :: self.block], self.grid.sides[k][axis == "x"]).T.float()
