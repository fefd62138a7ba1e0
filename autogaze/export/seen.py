"""What was seen of every place, in an exported graph (`autogaze.seen`): one tensor handed on from frame to frame.

A visual token is told `trace - held + level_embed[level]`. What earlier frames have to do with it is kept as one sum,
`seen = level_embed[level] - level_embed[0] - held`: zero before the first look, as a memory has to be at the start of
a stream. level_embed[0] is part of the positions (`autogaze.export.weights`).
"""

from __future__ import annotations

import torch

from autogaze.export.nodes import Nodes, Value
from autogaze.export.weights import SeenWeights


class SeenState:
    """Writes what is known after a look."""

    def __init__(self, nodes: Nodes, weights: SeenWeights) -> None:
        self.nodes, self.weights = nodes, weights

    def look(self, seen: Value | None, trace: Value, ids: Value, chosen: Value) -> Value:
        """The sum (B, N, width) float32 after a look at a frame.

        Args:
            seen: the sum before; None at a clip's first frame.
            trace: (B, N, width) float32, of the frame.
            ids, chosen: (B, budget), its gaze.
        """
        nodes, level = self.nodes, self._levels(ids, chosen)
        now = nodes.constant(self.weights.levels).gather(level.to(torch.int64), axis=0) - trace
        looked = nodes.constant(0.0, torch.float32) < level.unsqueeze(2)
        return nodes.where(looked, now, 0.0 if seen is None else seen)

    def _levels(self, ids: Value, chosen: Value) -> Value:
        """(B, N) float32: the finest level at which a gaze covers each place, 0 where it does not."""
        scales = len(self.weights.patch_at)
        ids = self.nodes.where(chosen, ids, -1).unsqueeze(2)
        mask = ids.equals(torch.arange(self.weights.patches)).to(torch.float32).max(1)  # (B, patches)
        level = torch.arange(1.0, scales + 1)[:, None]
        return (mask.gather(self.weights.patch_at, axis=1) * level).max(1)
