"""The fixed sizes of an exported graph, and what stands between its parts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from autogaze.export.graph.nodes import Value


@dataclass(frozen=True, eq=False)
class GraphSizes:
    """The fixed sizes of a graph."""

    visual: int  # visual tokens a frame
    patches: int  # ids a frame
    budget: int  # ids a frame may spend
    group: int  # K, ids a step
    window: int  # frames remembered
    allowed: Tensor  # (patches,) bool, ids that may be chosen

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
    """The earlier frames that a frame attends to."""

    frames: int  # frames remembered, f
    keys: tuple[Value, ...]  # a layer: (B, heads, f * block - K, head_dim), with rotary positions
    values: tuple[Value, ...]
    positions: Value  # (B, f * block) float32, positions of the tokens, and last those of `last_ids`; -1: nothing there
    last_ids: Value  # (B, K) int64, the newest frame's last group


@dataclass(frozen=True, eq=False)
class Asked:
    """Budget and requirement of a frame, for every sample."""

    budget: Value  # (B,) int32, ids it may spend
    requirement: Value  # (B,) float32, threshold on the predicted loss; -inf never stops


@dataclass(frozen=True, eq=False)
class LastGroup:
    """The group with which a frame ended."""

    kept: Value  # (B, K) float32, 1 where the id was chosen
    ids: Value  # (B, K) int64


@dataclass(frozen=True, eq=False)
class FrameValues:
    """Results of a frame: its gaze and, a layer, its block of keys and values."""

    ids: Value  # (B, budget) int64, 0 where not chosen
    chosen: Value  # (B, budget) bool
    task_loss: Value  # (B, budget) float32, loss predicted before each id was taken; NaN: slot not decoded
    count: Value  # (B,) int32
    positions: Value  # (B, block) float32
    last_ids: Value  # (B, K) int64
    keys: list[Value]  # (B, heads, block, head_dim), in the order of the memory; before rotation in a frame graph
    values: list[Value]
