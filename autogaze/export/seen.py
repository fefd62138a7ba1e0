"""What was seen of every place, in an exported graph (`autogaze.seen`): one tensor handed on from frame to frame.

A visual token is told `trace - held + level_embed[level]`. What earlier frames have to do with it is kept as one sum,
`seen = level_embed[level] - level_embed[0] - held`: zero before the first look, as a memory has to be at the start of
a stream. level_embed[0] is part of the positions (`autogaze.export.weights`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from autogaze.export.nodes import Nodes, Value


class SeenState:
    """Writes what is known after a look.

    Args:
        levels: (scales + 1, width) float32 embeddings, less that of "never", which is part of the positions.
    """

    def __init__(self, nodes: Nodes, levels: Tensor) -> None:
        self.nodes, self.levels = nodes, levels

    def look(self, seen: Value | None, trace: Value, level: Value) -> Value:
        """The sum (B, N, width) float32 after a look at a frame.

        Args:
            seen: the sum before; None at a clip's first frame.
            trace: (B, N, width) float32, of the frame.
            level: (B, N), of `looked`.
        """
        nodes = self.nodes
        now = nodes.constant(self.levels).gather(level.to(torch.int64), axis=0) - trace
        looked = nodes.constant(0.0, torch.float32) < level.unsqueeze(2)
        return nodes.where(looked, now, 0.0 if seen is None else seen)


def looked(nodes: Nodes, patch_at: Tensor, patches: int, ids: Value, chosen: Value) -> Value:
    """(B, N) float32: the finest level at which a gaze covers each place, 0 where it does not.

    Args:
        patch_at: (scales, N) int64, the patch of each scale at each place.
        patches: ids a frame.
        ids, chosen: (B, budget), the gaze.
    """
    ids = nodes.where(chosen, ids, -1).unsqueeze(2)
    mask = ids.equals(torch.arange(patches)).to(torch.float32).max(1)  # (B, patches)
    level = torch.arange(1.0, len(patch_at) + 1)[:, None]
    return (mask.gather(patch_at, axis=1) * level).max(1)
