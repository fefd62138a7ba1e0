"""Attention in an exported graph: rotary positions, and keys and values of the window and of the frame's own ids."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from autogaze.export.graph.nodes import Nodes, Value
from autogaze.export.graph.sizes import GraphSizes, Past

BLOCKED = -1e4  # added to a score that may not be seen: its weight is 0 in float16 too, and nothing becomes NaN


class Rotary:
    """Rotary positions, looked up in a table."""

    def __init__(self, nodes: Nodes, frequencies: Tensor, positions: int, dtype: torch.dtype) -> None:
        angles = torch.arange(positions)[:, None] * frequencies
        angles = torch.cat([angles, angles], dim=-1)
        half = torch.eye(len(frequencies), dtype=dtype)
        zero = torch.zeros_like(half)
        # (left, right) -> (-right, left): exact as a product, and one pass over the memory instead of three
        self.quarter = torch.cat([torch.cat([zero, half], dim=1), torch.cat([-half, zero], dim=1)])
        self.cos, self.sin = nodes.constant(angles.cos().to(dtype)), nodes.constant(angles.sin().to(dtype))

    def at(self, positions: Value, parts: list[int]) -> list[tuple[Value, Value]]:
        """(cos, sin) of consecutive parts of positions (B, N) float32, each (B, 1, part, head_dim)."""
        index = positions.to(torch.int64)
        columns = (table.gather(index, axis=0).unsqueeze(1).split(parts, axis=2) for table in (self.cos, self.sin))
        return list(zip(*columns, strict=True))

    def turn(self, keys: Value, cos: Value, sin: Value) -> Value:
        """Rotate keys (B, ..., N, head_dim)."""
        return keys * cos + (keys @ self.quarter) * sin


class Attention:
    """Keys and values during one frame: those of the prefill, then the frame's own ids, newest in front."""

    def __init__(
        self,
        nodes: Nodes,
        sizes: GraphSizes,
        heads: list[int],
        dtype: torch.dtype,
        past: Past | None,
        forget: bool,
    ) -> None:
        self.nodes, self.sizes, self.past, self.heads = nodes, sizes, past, heads
        frames = past.frames if past else 0
        self.there = frames * sizes.block + sizes.visual  # tokens after the prefill
        mask = _prefill_mask(sizes, frames, forget)
        step_mask = torch.cat(
            [
                mask[-1:].expand(sizes.group, -1),
                F.pad(torch.full((sizes.group,) * 2, BLOCKED).triu(1), (0, max(0, sizes.fed - sizes.group))),
            ],
            dim=1,
        )
        columns = self._columns(dtype)
        self.prefill_bias = self._bias(columns, mask.to(dtype))
        self.step_bias = self._bias(columns, step_mask.to(dtype))
        self._biases: dict[tuple[int, bool], Value] = {}  # of a step, by its ids so far and whether of its last row
        self.held: list[tuple[Value, Value]] = []  # a layer: keys, transposed, and values after the prefill
        self.own: list[tuple[Value, Value] | None] = [None] * len(heads)
        self.new: list[list[tuple[Value, Value, Value]]] = [[] for _ in heads]

    def _columns(self, dtype: torch.dtype) -> Value | None:
        """Mask of the past that no row may see, because nothing is there: (B, f * block)."""
        if self.past is None:
            return None
        return self.nodes.where(self.past.positions < 0.0, BLOCKED, self.nodes.constant(0.0, dtype))

    def _bias(self, columns: Value | None, mask: Tensor) -> Value:
        """A mask (rows, N), and for every sample also what its past lacks: (B, 1, rows, N)."""
        if columns is None or self.past is None:
            return self.nodes.constant(mask)
        new = mask.shape[1] - self.past.frames * self.sizes.block  # of this frame: they are surely there
        return self.nodes.op("Pad", columns, torch.tensor([0, 0, 0, new])).unsqueeze(1, 2) + mask

    def remember(self, layer: int, straight: Value, key: Value, value: Value) -> None:
        """Keep what a pass adds; straight: queries and keys before rotation (B, 2 * heads, N, head_dim)."""
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
        scores = self.nodes.concat([query @ window_keys, query @ keys.transpose(0, 1, 3, 2)], axis=-1)
        weights = (scores + self._step_bias(here, last)).softmax()
        of_window, of_own = weights.split([self.there, here], axis=-1)
        return of_window @ window_values + of_own @ values

    def _step_bias(self, here: int, last: bool) -> Value:
        """The bias of a step of `here` ids so far, for all rows or for the last one; every layer shares it."""
        if (here, last) not in self._biases:
            whole = self.step_bias if here == self.sizes.fed else self.step_bias.cut(-1, 0, self.there + here)
            self._biases |= {(here, False): whole, (here, True): whole.cut(-2, -1)}
        return self._biases[here, last]

    def blocks(self, straight: bool) -> tuple[list[Value], list[Value]]:
        """A layer: keys and values of everything this frame fed, in order.

        Args:
            straight: keys without their positions.
        """
        keys, values = [], []
        for heads, layer in zip(self.heads, self.new, strict=True):
            plain, turned, value = zip(*layer, strict=True)
            joined = self.nodes.concat(plain if straight else turned, axis=2)
            keys.append(joined.cut(1, heads) if straight else joined)
            values.append(self.nodes.concat(value, axis=2))
        return keys, values


def _prefill_mask(sizes: GraphSizes, frames: int, forget: bool) -> Tensor:
    """(K + visual, frames * block + visual): what rows of the prefill may not see although it is there."""
    rows = sizes.visual + (sizes.group if frames else 0)
    columns = frames * sizes.block + sizes.visual
    mask = torch.full((rows, columns), BLOCKED).triu(columns - rows + 1)
    if forget:
        mask[sizes.group :, : sizes.block] = BLOCKED
    return mask
