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

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from autogaze.export.nodes import Nodes, Value
from autogaze.export.weights import GraphWeights, LayerWeights, NormWeights

BLOCKED = -1e4  # added to a score that may not be seen: its weight is 0 in float16 too, and nothing becomes NaN
TAKEN = -1e30  # added to the logit of an id that the frame has already


@dataclass(frozen=True)
class GraphSizes:
    """The fixed sizes of a graph."""

    visual: int  # visual tokens a frame
    patches: int  # ids a frame
    budget: int  # ids a frame may spend
    group: int  # K, ids a step
    window: int  # frames remembered

    @property
    def steps(self) -> int:
        """Groups of ids a frame, G."""
        return -(-self.budget // self.group)

    @property
    def fed(self) -> int:
        """Ids that are fed while their frame is decoded: all groups but the last."""
        return (self.steps - 1) * self.group

    @property
    def block(self) -> int:
        """Tokens that a frame adds."""
        return self.visual + self.fed + self.group

    @property
    def memory(self) -> int:
        """Tokens that a stream remembers between frames."""
        return self.window * self.block - self.group


@dataclass(frozen=True, eq=False)
class Past:
    """What a frame sees of earlier ones."""

    frames: int  # frames remembered, f
    keys: tuple[Value, ...]  # a layer: (B, heads, f * block - K, head_dim), with rotary positions
    values: tuple[Value, ...]
    places: Value  # (B, f * block) float32, positions of the tokens, and last those of `last_ids`; -1: nothing there
    last_ids: Value  # (B, K) int64, the newest frame's last group; `eos` where padding stands in it (see `in_step`)


@dataclass(frozen=True, eq=False)
class Asked:
    """What is asked of a frame, for every sample."""

    budget: Value  # (B,) int32, ids it may spend
    requirement: Value  # (B,) float32, threshold on the predicted loss; -inf never stops
    in_step: Value  # (B,) bool, decoded in step with the others that say so, as published models decode a batch


@dataclass(frozen=True, eq=False)
class LastGroup:
    """The group with which a frame ended."""

    kept: Value  # (B, K) float32, 1 where the id was chosen
    decoded: Value  # (B, K) float32, 1 where the slot was decoded
    ids: Value  # (B, K) int64


@dataclass(frozen=True, eq=False)
class FrameValues:
    """What a frame adds: its gaze and, a layer, its block of keys before rotation, keys and values."""

    ids: Value  # (B, budget) int64, 0 where not chosen
    chosen: Value  # (B, budget) bool
    task_loss: Value  # (B, budget) float32, loss predicted before each id was taken; NaN: slot not decoded
    count: Value  # (B,) int32
    places: Value  # (B, block) float32
    last_ids: Value  # (B, K) int64
    straight_keys: list[Value]  # (B, heads, block, head_dim), in the order of the memory
    keys: list[Value]
    values: list[Value]


class Encoder:
    """Frames to visual tokens."""

    def __init__(self, nodes: Nodes, weights: GraphWeights, dtype: torch.dtype) -> None:
        self.nodes, self.weights, self.dtype = nodes, weights.encoder, dtype

    def frame(self, frame: Value, memory: Value) -> tuple[Value, Value]:
        """Visual tokens (B, N, width) of frames (B, 3, H, W), and the new memory (B, blocks * past * C, side, side)."""
        x, width = self._patches(frame), self.weights.past * self.weights.channels
        pasts = memory.split([width] * len(self.weights.blocks), axis=1)
        new = []
        for past, block in zip(pasts, self.weights.blocks, strict=True):
            stacked = self.nodes.concat([past, x], axis=1)
            new.append(stacked.cut(1, self.weights.channels))
            x = self._convolve(stacked, block)
        return self._tokens(x), self.nodes.concat(new, axis=1)

    def clip(self, frames: Value, count: int) -> Value:
        """Visual tokens (B, T, N, width) of frames (B * T, 3, H, W)."""
        x, side, channels = self._patches(frames), self.weights.side, self.weights.channels
        for block in self.weights.blocks:
            x = x.reshape(-1, count, channels, side, side)
            padded = self.nodes.op("Pad", x, torch.tensor([0, self.weights.past, 0, 0, 0] + [0] * 5))
            views = [padded.cut(1, lag, lag + count) for lag in range(self.weights.past + 1)]
            stacked = self.nodes.concat(views, axis=2).reshape(-1, len(views) * channels, side, side)
            x = self._convolve(stacked, block)
        return self._tokens(x).reshape(-1, count, side * side, self.weights.position.shape[1])

    def _patches(self, frames: Value) -> Value:
        weight, bias = self.weights.patch
        x = self.nodes.conv(frames.to(self.dtype), weight, bias, stride=weight.shape[-1]).transpose(0, 2, 3, 1)
        return self.nodes.layer_norm(x, *self.weights.norm).transpose(0, 3, 1, 2)

    def _convolve(self, stacked: Value, block: tuple[Tensor, Tensor]) -> Value:
        return self.nodes.op("Relu", self.nodes.conv(stacked, *block))

    def _tokens(self, x: Value) -> Value:
        flat = x.reshape(0, self.weights.channels, -1).transpose(0, 2, 1)
        return (flat @ self.weights.project).to(torch.float32) + self.weights.position


class Rotary:
    """Rotary positions, looked up in a table."""

    def __init__(self, nodes: Nodes, frequencies: Tensor, positions: int, dtype: torch.dtype) -> None:
        angles = torch.arange(positions)[:, None] * frequencies
        angles = torch.cat([angles, angles], dim=-1)
        self.nodes, self.half = nodes, len(frequencies)
        self.cos, self.sin = nodes.constant(angles.cos().to(dtype)), nodes.constant(angles.sin().to(dtype))

    def at(self, places: Value, parts: list[int]) -> list[tuple[Value, Value]]:
        """(cos, sin) of consecutive parts of places (B, N) float32, each (B, 1, part, head_dim)."""
        index = places.to(torch.int64)
        columns = (table.gather(index, axis=0).unsqueeze(1).split(parts, axis=2) for table in (self.cos, self.sin))
        return list(zip(*columns, strict=True))

    def turn(self, keys: Value, cos: Value, sin: Value) -> Value:
        """Rotate keys (B, ..., N, head_dim)."""
        left, right = keys.split([self.half, self.half], axis=-1)
        return keys * cos + self.nodes.concat([-right, left], axis=-1) * sin


class FrameDecoder:
    """Writes the decoding of one frame: prefill, all groups, budget and stop rule."""

    def __init__(self, nodes: Nodes, weights: GraphWeights, sizes: GraphSizes, dtype: torch.dtype) -> None:
        self.nodes, self.weights, self.sizes, self.dtype = nodes, weights, sizes, dtype

    def new_places(self, past: Value | None) -> tuple[Value, Value]:
        """Tokens in the window (B, 1), and positions (B, visual + fed) of this frame's tokens.

        A group that is fed while its frame is decoded takes the positions of the frame's last K visual tokens, as
        published models are trained (see `autogaze.decoding.plain`).
        """
        sizes = self.sizes
        groups = sizes.visual - sizes.group + torch.arange(sizes.fed) % sizes.group
        offsets = torch.cat([torch.arange(sizes.visual), groups]).float()[None]
        if past is None:
            return self.nodes.constant(torch.zeros(1, 1)), self.nodes.constant(offsets)
        count = (self.nodes.constant(-1.0, torch.float32) < past).to(torch.float32).sum(1, keep=True)
        return count, count + offsets

    def last_places(self, places: Value, last_ids: Value, frames: int) -> Value:
        """Positions (B, K) of the newest frame's last group, which comes in now.

        Padding that stands in it has the position of a visual token, as every group that is fed at once.

        Args:
            places: (B, frames * block) float32 of the whole window.
        """
        end = frames * self.sizes.block - self.sizes.group
        visual_end = end - self.sizes.fed
        among = places.cut(1, visual_end - self.sizes.group, visual_end)
        padding = last_ids.equals(self.sizes.patches)
        return self.nodes.where(padding, among, self.nodes.op("Max", places.cut(1, end), 0.0))

    def write(
        self,
        visual: Value,
        past: Past | None,
        count: Value,
        places: Value,
        rotations: list[tuple[Value, Value]],
        forget: bool,
        asked: Asked,
    ) -> FrameValues:
        """One frame.

        Args:
            visual: (B, N, width) float32.
            past: None at a clip's first frame.
            count, places: of `new_places`.
            rotations: of the prefill's tokens, then of every later step's.
            forget: whether the oldest frame leaves the window (only the last group before still sees it).
        """
        nodes, sizes = self.nodes, self.sizes
        attention = _Attention(self, past, forget)
        with nodes.scope("prefill"):
            x = visual
            if past is not None:
                x = nodes.concat([nodes.constant(self.weights.embeddings).gather(past.last_ids, axis=0), x], axis=1)
            hidden = self._pass(x, rotations[0], attention, attention.prefill)
        ids, losses, taken = [], [], nodes.constant(0.0, torch.float32)
        for step in range(sizes.steps):
            with nodes.scope(f"group{step}"):
                group, loss, taken = self._choose(hidden, taken)
                ids.append(group)
                losses.append(loss)
                if step + 1 < sizes.steps:
                    x = nodes.constant(self.weights.embeddings).gather(group, axis=0)
                    hidden = self._pass(x, rotations[step + 1], attention, attention.step)
        with nodes.scope("stop"):
            joined = nodes.concat(ids, axis=1), nodes.concat(losses, axis=1)
            gaze, groups, last = stop_rule(nodes, *joined, asked, sizes)
            in_step = asked.in_step.unsqueeze(1)
            longest = (groups * in_step.to(torch.float32)).max(0, keep=True)
            others_go_on = (groups < longest) & in_step
            block = self._block_places(count, places, groups, last, others_go_on)
            last_ids = nodes.where(others_go_on & (last.kept < last.decoded), sizes.patches, last.ids)
        return FrameValues(*gaze, block, last_ids, *attention.blocks())

    def _block_places(self, count: Value, places: Value, groups: Value, last: LastGroup, others_go_on: Value) -> Value:
        """Positions of everything that the frame adds (B, block), -1 where nothing is.

        Args:
            groups: (B, 1) float32, groups that were begun.
            others_go_on: (B, 1) bool: then published models feed the last group at once, like any other.
        """
        nodes, sizes = self.nodes, self.sizes
        rank = last.kept @ torch.ones(sizes.group, sizes.group).triu(1)
        fed_ids = nodes.op("Max", groups - 1.0, 0.0) * float(sizes.group)
        counted = fed_ids + rank + count + float(sizes.visual)
        among = nodes.constant(torch.arange(sizes.group).float() + (sizes.visual - sizes.group)) + count
        chosen = nodes.constant(0.5, torch.float32) < last.kept
        last_places = nodes.where(chosen, nodes.where(others_go_on, among, counted), -1.0)
        fed = (torch.arange(sizes.fed) // sizes.group + 1).float()  # the group after must have begun
        there = nodes.constant(torch.cat([torch.full((sizes.visual,), -1.0), fed])) < groups
        return nodes.concat([nodes.where(there, places, -1.0), last_places], axis=1)

    def _pass(self, x: Value, rotation: tuple[Value, Value], attention: _Attention, attend) -> Value:  # type: ignore[no-untyped-def]
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
        """Query and key with positions, key without, value: (B, heads, N, head_dim)."""
        heads, width = layer.heads, layer.project.shape[1] // (5 * layer.heads)
        projected = (self._norm(x, layer.norm_attention) @ layer.project).reshape(0, 0, 5 * heads, width)
        straight, turned, value = projected.transpose(0, 2, 1, 3).split([2 * heads, 2 * heads, heads], axis=1)
        query, key = (straight * rotation[0] + turned * rotation[1]).split([heads, heads], axis=1)
        return query, key, straight.cut(1, heads), value

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

    def _choose(self, hidden: Value, taken: Value) -> tuple[Value, Value, Value]:
        """K ids (B, K) head by head, none twice; predicted losses (B, K); the new penalties of taken ids."""
        sizes, nodes = self.sizes, self.nodes
        scores = (hidden @ self.weights.head).to(torch.float32)
        *logits, losses = scores.split([sizes.patches] * sizes.group + [sizes.group], axis=-1)
        everyone, ids = torch.arange(sizes.patches), []
        for head in logits:
            choice = nodes.argmax(head + taken)
            taken = nodes.where(choice.equals(everyone), TAKEN, taken)
            ids.append(choice)
        return nodes.concat(ids, axis=1), losses, taken


class _Attention:
    """Keys and values during one frame: those of the prefill, then the frame's own ids, newest in front."""

    def __init__(self, decoder: FrameDecoder, past: Past | None, forget: bool) -> None:
        self.nodes, self.sizes, self.past = decoder.nodes, decoder.sizes, past
        layers = len(decoder.weights.layers)
        sizes, frames = self.sizes, past.frames if past else 0
        self.there = frames * sizes.block + sizes.visual  # tokens after the prefill
        self.rows = sizes.visual + (sizes.group if past else 0)  # tokens of the prefill
        mask = _prefill_mask(sizes, frames, forget)
        step_mask = torch.cat(
            [
                mask[-1:].expand(sizes.group, -1),
                F.pad(torch.full((sizes.group,) * 2, BLOCKED).triu(1), (0, max(0, sizes.fed - sizes.group))),
            ],
            dim=1,
        )
        columns = self._columns(decoder)
        self.prefill_bias = self._prefill_bias(columns, mask.to(decoder.dtype))
        self.step_bias = self._bias(columns, step_mask.to(decoder.dtype))
        self.held: list[tuple[Value, Value]] = []  # a layer: keys, transposed, and values after the prefill
        self.own: list[tuple[Value, Value] | None] = [None] * layers
        self.new: list[list[tuple[Value, Value, Value]]] = [[] for _ in range(layers)]

    def _columns(self, decoder: FrameDecoder) -> Value | None:
        """What every row may not see of the past, because nothing is there: (B, f * block)."""
        if self.past is None:
            return None
        return self.nodes.where(self.past.places < 0.0, BLOCKED, self.nodes.constant(0.0, decoder.dtype))

    def _bias(self, columns: Value | None, mask: Tensor) -> Value:
        """A mask (rows, N), and for every sample also what its past lacks: (B, 1, rows, N)."""
        if columns is None or self.past is None:
            return self.nodes.constant(mask)
        new = mask.shape[1] - self.past.frames * self.sizes.block  # of this frame: they are surely there
        return self.nodes.op("Pad", columns, torch.tensor([0, 0, 0, new])).unsqueeze(1, 2) + mask

    def _prefill_bias(self, columns: Value | None, mask: Tensor) -> Value:
        """`_bias`, but padding that stands in the last group is seen by the group itself."""
        if columns is None or self.past is None:
            return self._bias(columns, mask)
        group, remembered = self.sizes.group, self.past.frames * self.sizes.block - self.sizes.group
        memory, last = columns.split([remembered, group], axis=1)
        last = self.nodes.where(self.past.last_ids.equals(self.sizes.patches), 0.0, last)
        own = self._bias(self.nodes.concat([memory, last], axis=1), mask[:group])
        return self.nodes.concat([own, self._bias(columns, mask[group:])], axis=2)

    def remember(self, layer: int, straight: Value, key: Value, value: Value) -> None:
        self.new[layer].append((straight, key, value))

    def prefill(self, layer: int, query: Value, key: Value, value: Value, last: bool) -> Value:
        """Attention of the last group of the frame before, and of the visual tokens."""
        if self.past is not None:
            key = self.nodes.concat([self.past.keys[layer], key], axis=2)
            value = self.nodes.concat([self.past.values[layer], value], axis=2)
        self.held.append((key.transpose(0, 1, 3, 2), value))
        bias = self.prefill_bias.cut(-2, -1) if last else self.prefill_bias
        return (query @ self.held[layer][0] + bias).softmax() @ value

    def step(self, layer: int, query: Value, key: Value, value: Value, last: bool) -> Value:
        """Attention of a group of ids: the newest keys stand in front, so that one bias serves every step."""
        held, steps = self.own[layer], len(self.new[layer]) - 1
        keys = key if held is None else self.nodes.concat([key, held[0]], axis=2)
        values = value if held is None else self.nodes.concat([value, held[1]], axis=2)
        self.own[layer] = keys, values
        window_keys, window_values = self.held[layer]
        here = steps * self.sizes.group
        bias = self.step_bias if here == self.sizes.fed else self.step_bias.cut(-1, 0, self.there + here)
        scores = self.nodes.concat([query @ window_keys, query @ keys.transpose(0, 1, 3, 2)], axis=-1)
        weights = (scores + (bias.cut(-2, -1) if last else bias)).softmax()
        of_window, of_own = weights.split([self.there, here], axis=-1)
        return of_window @ window_values + of_own @ values

    def blocks(self) -> tuple[list[Value], list[Value], list[Value]]:
        """A layer: keys before rotation, keys and values of everything this frame fed, in order."""
        joined = [[self.nodes.concat(list(parts), axis=2) for parts in zip(*layer, strict=True)] for layer in self.new]
        straight, keys, values = zip(*joined, strict=True)
        return list(straight), list(keys), list(values)


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
    last_kept, last_decoded, last_ids = (
        (value.to(torch.float32).reshape(0, steps, group) * is_last).sum(1) for value in (kept, decoded, ids)
    )
    last = LastGroup(last_kept, last_decoded, last_ids.to(torch.int64))
    gaze = [nodes.where(chosen, ids, 0), chosen, nodes.where(decoded, losses, float("nan"))]
    if sizes.budget < steps * group:
        gaze = [value.cut(1, 0, sizes.budget) for value in gaze]
    return (gaze[0], gaze[1], gaze[2], kept.sum(1).to(torch.int32)), alive.sum(1, keep=True), last


def _prefill_mask(sizes: GraphSizes, frames: int, forget: bool) -> Tensor:
    """(K + visual, frames * block + visual): what rows of the prefill may not see although it is there."""
    rows = sizes.visual + (sizes.group if frames else 0)
    columns = frames * sizes.block + sizes.visual
    mask = torch.full((rows, columns), BLOCKED).triu(columns - rows + 1)
    if forget:
        mask[sizes.group :, : sizes.block] = BLOCKED
    return mask
