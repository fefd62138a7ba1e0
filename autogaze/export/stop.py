"""Budget and stop rule in an exported graph."""

from __future__ import annotations

import torch

from autogaze.export.nodes import Nodes, Value
from autogaze.export.sizes import Asked, GraphSizes, LastGroup


def stop_rule(
    nodes: Nodes, ids: Value, losses: Value, asked: Asked, sizes: GraphSizes
) -> tuple[tuple[Value, Value, Value, Value], Value, LastGroup]:
    """Budget and stop rule over all groups at once (see `autogaze.decoding.choice.keep_group`).

    Args:
        ids, losses: (B, G * K), decoded as if nobody ever stopped.

    Returns:
        ids, chosen, task loss and count of the gaze; groups that were begun (B, 1) float32; the frame's last group.
    """
    steps, group = sizes.steps, sizes.group
    slots = torch.arange(steps * group, dtype=torch.int32)
    limit = asked.budget.unsqueeze(1)
    within = nodes.constant(slots) < limit
    met = (losses <= asked.requirement.unsqueeze(1)) & within & (slots > 0)
    ending = met.to(torch.float32).reshape(0, steps, group).max(-1)  # (B, G): 1 at a group that ends the frame
    begun = (ending @ torch.ones(steps, steps).triu(1) < 0.5) & (nodes.constant(slots[::group]) < limit)
    decoded = (begun.unsqueeze(2) & within.reshape(0, steps, group)).reshape(0, steps * group)
    chosen = decoded & ~met
    alive = begun.to(torch.float32)
    is_last = (alive - alive @ torch.diag(torch.ones(steps - 1), -1)).unsqueeze(2)  # 1 at the frame's last group
    kept = chosen.to(torch.float32)
    last_kept, last_ids = ((value.to(torch.float32).reshape(0, steps, group) * is_last).sum(1) for value in (kept, ids))
    last = LastGroup(last_kept, last_ids.to(torch.int64))
    gaze = [nodes.where(chosen, ids, 0), chosen, nodes.where(decoded, losses, float("nan"))]
    if sizes.budget < steps * group:
        gaze = [value.cut(1, 0, sizes.budget) for value in gaze]
    return (gaze[0], gaze[1], gaze[2], kept.sum(1).to(torch.int32)), alive.sum(1, keep=True), last
