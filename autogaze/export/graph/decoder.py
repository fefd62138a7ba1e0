"""The exported graphs: fixed shapes, no control flow, every decode step of the budget unrolled.

**Frame graph**: one frame and the memory in, its gaze and the new memory out. The memory is a queue of tokens: a call
appends one block `[last ids of the frame before | visual tokens | other ids]` and forgets the oldest frame, so the
newest token is always at the end, nothing is indexed, and a frame of G groups costs G passes instead of G + 1. Keys are
kept without rotary positions, and positions are counted from the window's first token, so they stay small for ever.
**Clip graph**: all frames of a clip in, all gazes out; the window grows frame by frame and holds no unused place.

With 265 ids a frame, 196 visual tokens, a budget of 26 ids, K = 10 and a window of 16 frames there are G = 3 groups,
a block has 196 + 30 = 226 tokens, and the memory holds 16 * 226 - 10 = 3606: the newest frame's last group comes with
the next call.
"""

from __future__ import annotations

import torch

from autogaze.export.graph.attention import Attention
from autogaze.export.graph.nodes import Nodes, Value
from autogaze.export.graph.residual import FrameResiduals
from autogaze.export.graph.sizes import Asked, FrameValues, GraphSizes, LastGroup, Past
from autogaze.export.graph.weights import GraphWeights, LayerWeights, NormWeights

TAKEN = -1e30  # added to the logit of an id that the frame has already, or that may never be chosen


class FrameDecoder:
    """Writes the decoding of one frame: prefill, all groups, budget and stop rule."""

    def __init__(self, nodes: Nodes, weights: GraphWeights, sizes: GraphSizes, dtype: torch.dtype) -> None:
        self.nodes, self.weights, self.sizes, self.dtype = nodes, weights, sizes, dtype

    def new_positions(self, past: Value | None) -> tuple[Value, Value]:
        """Tokens in the window (B, 1), and positions (B, visual + fed) of this frame's tokens.

        A group that is fed while its frame is decoded takes the positions of the frame's last K visual tokens, as
        published models are trained (see `autogaze.decoding.sequence`).
        """
        sizes = self.sizes
        groups = sizes.visual - sizes.group + torch.arange(sizes.fed) % sizes.group
        offsets = torch.cat([torch.arange(sizes.visual), groups]).float()[None]
        if past is None:
            return self.nodes.constant(torch.zeros(1, 1)), self.nodes.constant(offsets)
        count = (self.nodes.constant(-1.0, torch.float32) < past).to(torch.float32).sum(1, keep=True)
        return count, count + offsets

    def last_positions(self, positions: Value, frames: int) -> Value:
        """Positions (B, K) of the newest frame's last group, which comes in now; 0 where nothing is.

        Args:
            positions: (B, frames * block) float32 of the whole window.
        """
        return self.nodes.op("Max", positions.cut(1, frames * self.sizes.block - self.sizes.group), 0.0)

    def write(
        self,
        visual: Value,
        past: Past | None,
        count: Value,
        positions: Value,
        rotations: list[tuple[Value, Value]],
        forget: bool,
        asked: Asked,
        errors: FrameResiduals | None,
    ) -> FrameValues:
        """One frame.

        Args:
            visual: (B, N, width) float32.
            past: None at a clip's first frame.
            count, positions: of `new_positions`.
            rotations: of the prefill's tokens, then of every later step's.
            forget: whether the oldest frame leaves the window (only the last group before still sees it); positions
                then change from call to call, so keys are handed on without them.
            errors: what is wrong with the frame, of models that know it.
        """
        nodes, sizes = self.nodes, self.sizes
        heads = [layer.heads for layer in self.weights.layers]
        attention = Attention(nodes, sizes, heads, self.dtype, past, forget)
        with nodes.scope("prefill"):
            x = visual
            if past is not None:
                x = nodes.concat([nodes.constant(self.weights.embeddings).gather(past.last_ids, axis=0), x], axis=1)
            hidden = self._pass(x, rotations[0], attention, attention.prefill)
        ids, losses, taken = [], [], nodes.constant(TAKEN * ~sizes.allowed, torch.float32)
        for step in range(sizes.steps):
            with nodes.scope(f"group{step}"):
                group, loss, taken = self._choose(hidden, taken, errors)
                ids.append(group)
                losses.append(loss)
                if step + 1 < sizes.steps:
                    x = nodes.constant(self.weights.embeddings).gather(group, axis=0)
                    hidden = self._pass(x, rotations[step + 1], attention, attention.step)
        with nodes.scope("stop"):
            joined = nodes.concat(ids, axis=1), nodes.concat(losses, axis=1)
            gaze, groups, last = stop_rule(nodes, *joined, asked, sizes)
            block = self._block_positions(count, positions, groups, last)
        return FrameValues(*gaze, block, last.ids, *attention.blocks(straight=forget))

    def _block_positions(self, count: Value, positions: Value, groups: Value, last: LastGroup) -> Value:
        """Positions of everything that the frame adds (B, block), -1 where nothing is.

        Args:
            groups: (B, 1) float32, groups that were begun.
        """
        nodes, sizes = self.nodes, self.sizes
        rank = last.kept @ torch.ones(sizes.group, sizes.group).triu(1)
        fed_ids = nodes.op("Max", groups - 1.0, 0.0) * float(sizes.group)
        chosen = nodes.constant(0.5, torch.float32) < last.kept
        last_positions = nodes.where(chosen, fed_ids + rank + count + float(sizes.visual), -1.0)
        fed = (torch.arange(sizes.fed) // sizes.group + 1).float()  # the group after must have begun
        there = nodes.constant(torch.cat([torch.full((sizes.visual,), -1.0), fed])) < groups
        return nodes.concat([nodes.where(there, positions, -1.0), last_positions], axis=1)

    def _pass(self, x: Value, rotation: tuple[Value, Value], attention: Attention, attend) -> Value:  # type: ignore[no-untyped-def]
        """The last token's normed state (B, width) after all layers; of the last layer only that token is computed."""
        for index, layer in enumerate(self.weights.layers):
            last = index == len(self.weights.layers) - 1
            with self.nodes.scope(f"layer{index}"):
                query, key, straight, value = self._project(x, layer, rotation)
                if last:
                    x, query = x.cut(1, -1), query.cut(2, -1)
                attention.remember(index, straight, key, value)
                x = self._finish(x, attend(index, query, key, value, last), layer)
        return self._norm(x, self.weights.norm).reshape(-1, self.weights.head.shape[0])

    def _project(
        self, x: Value, layer: LayerWeights, rotation: tuple[Value, Value]
    ) -> tuple[Value, Value, Value, Value]:
        """Query and key with positions, both together without, value: (B, heads or 2 * heads, N, head_dim)."""
        heads, width = layer.heads, layer.project.shape[1] // (5 * layer.heads)
        projected = (self._norm(x, layer.norm_attention) @ layer.project).reshape(0, 0, 5 * heads, width)
        straight, turned, value = projected.transpose(0, 2, 1, 3).split([2 * heads, 2 * heads, heads], axis=1)
        query, key = (straight * rotation[0] + turned * rotation[1]).split([heads, heads], axis=1)
        return query, key, straight, value

    def _finish(self, x: Value, mixed: Value, layer: LayerWeights) -> Value:
        """Output projection and MLP with their residuals; mixed: (B, heads, N, head_dim)."""
        hidden = len(layer.down)
        x = x + (mixed.transpose(0, 2, 1, 3).reshape(0, 0, -1) @ layer.out).to(torch.float32)
        gate, up = (self._norm(x, layer.norm_mlp) @ layer.gate_up).split([hidden, hidden], axis=-1)
        return x + ((gate * self.nodes.op("Sigmoid", gate) * up) @ layer.down).to(torch.float32)

    def _norm(self, x: Value, norm: NormWeights) -> Value:
        """RMS norm in float32, spelled as ONNX Runtime's fusion expects it."""
        mean = self.nodes.op("ReduceMean", self.nodes.op("Pow", x, 2.0), torch.tensor([-1]), keepdims=1)
        return (x / self.nodes.op("Sqrt", mean + norm.eps) * norm.weight).to(self.dtype)

    def _choose(self, hidden: Value, taken: Value, errors: FrameResiduals | None) -> tuple[Value, Value, Value]:
        """K ids (B, K) head by head, none twice; predicted losses (B, K); and what is added to the logits of ids that
        may not be chosen again, (1 or B, patches), with those ids."""
        sizes, nodes = self.sizes, self.nodes
        said = (hidden @ self.weights.head).to(torch.float32)
        heads, everyone, ids = [sizes.patches] * sizes.group, torch.arange(sizes.patches), []
        parts = said.split(heads if errors else [*heads, sizes.group], axis=-1)
        for head in parts[: sizes.group]:
            choice = nodes.argmax((head + errors.scores() if errors else head) + taken)
            taken = nodes.where(choice.equals(everyone), TAKEN, taken)
            ids.append(choice)
            if errors:
                errors.take(choice)
        return nodes.concat(ids, axis=1), errors.losses() if errors else parts[-1], taken


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
