"""Quad-tree: adaptive patch sizes by entropy, as in APT (Choudhury et al. 2025, arXiv:2510.18091).

Every frame starts as the coarsest patches; a patch whose grey-level entropy is above a threshold is split into the
patches of the next scale whose centres it covers. The paper fixes thresholds; here one threshold per frame is
found by bisection so that the leaves fit the budget, and what is left of it goes to the leaves' own parts, highest
entropy first.
Frames are treated one by one: what was already seen earlier is paid for again.
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from autogaze.selectors.features import luminance
from autogaze.selectors.ranking import ScoringSelector

_BINS = 32  # grey levels of the histogram
_FIRST = 100.0  # more than any entropy: leaves come first, what they replace comes last
_ROUNDS = 16  # of bisection: the threshold is exact to 5 bits / 2^16


class QuadTreeSelector(ScoringSelector):
    """Scores patches by their place in the tree: leaves first."""

    def scores(self, video: Tensor, budget: Tensor) -> Tensor:
        entropy = self.entropy(video)
        low, high = torch.zeros_like(entropy[..., 0]), torch.full_like(entropy[..., 0], 6.0)
        for _ in range(_ROUNDS):
            middle = (low + high) / 2
            fits = self.leaves(entropy, middle)[0].sum(-1) <= budget
            low, high = low.where(fits, middle), middle.where(fits, high)
        leaves, split = self.leaves(entropy, high)
        return entropy + _FIRST * leaves - _FIRST * split

    def entropy(self, video: Tensor) -> Tensor:
        """(B, T, patches_per_frame), bits: entropy of the grey levels under every patch."""
        grey = luminance(video)
        low, high = grey.amin((1, 2, 3), keepdim=True), grey.amax((1, 2, 3), keepdim=True)
        bins = ((grey - low) / (high - low).clamp(min=1e-6) * _BINS).long().clamp(max=_BINS - 1)
        share = [self.lattice.means(self.lattice.pool((bins == level).float())) for level in range(_BINS)]
        return -sum(torch.special.xlogy(part, part) for part in share) / math.log(2)

    def leaves(self, entropy: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
        """The patches left, and those that were split, when everything above the threshold (B, T) is split.

        Both are (B, T, patches_per_frame) bool.
        """
        busy = (entropy > threshold[..., None]).split(list(self.grid.patches_per_scale), dim=-1)
        reached, leaves, split = torch.ones_like(busy[0]), [], []
        for k, parents in enumerate([*self._parents, None]):
            divided = reached & busy[k] if parents is not None else torch.zeros_like(reached)
            leaves.append(reached & ~divided)
            split.append(divided)
            if parents is not None:
                reached = divided[..., parents.to(entropy.device)]
        return torch.cat(leaves, dim=-1), torch.cat(split, dim=-1)

    @cached_property
    def _parents(self) -> list[Tensor]:
        """For each scale but the coarsest: the index of the patch one scale up that holds each patch's centre."""
        parents = []
        for k in range(1, len(self.grid.scales)):
            up, here = self.lattice.steps[k - 1], self.lattice.steps[k]
            (rows, columns), (up_rows, up_columns) = self.grid.sides[k], self.grid.sides[k - 1]
            row, column = (
                ((2 * torch.arange(count, device="cpu") + 1) * here // (2 * up)).clamp(max=most - 1)
                for count, most in ((rows, up_rows), (columns, up_columns))
            )
            parents.append((row[:, None] * up_columns + column).flatten())
        return parents
