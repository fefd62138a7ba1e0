"""The frame encoder in an exported graph: a convolution over three frames is one over their stacked channels."""

from __future__ import annotations

import torch
from torch import Tensor

from autogaze.export.graph.nodes import Nodes, Value
from autogaze.export.graph.weights import GraphWeights


class Encoder:
    """Frames to visual tokens."""

    def __init__(self, nodes: Nodes, weights: GraphWeights, dtype: torch.dtype) -> None:
        self.nodes, self.weights, self.dtype = nodes, weights.encoder, dtype

    def frame(self, frame: Value, memory: Value) -> tuple[Value, Value]:
        """Visual tokens (B, N, width) float32 of frames (B, 3, H, W), and the new memory
        (B, blocks * past * C, side, side)."""
        x = self._patches(frame)
        width = self.weights.past * self.weights.channels
        pasts = memory.split([width] * len(self.weights.blocks), axis=1)
        new = []
        for past, block in zip(pasts, self.weights.blocks, strict=True):
            stacked = self.nodes.concat([past, x], axis=1)
            new.append(stacked.cut(1, self.weights.channels))
            x = self._convolve(stacked, block)
        return self._tokens(x), self.nodes.concat(new, axis=1)

    def clip(self, frames: Value, count: int) -> Value:
        """Visual tokens (B, T, N, width) float32 of frames (B * T, 3, H, W)."""
        x = self._patches(frames)
        side, channels = self.weights.side, self.weights.channels
        for block in self.weights.blocks:
            x = x.reshape(-1, count, channels, side, side)
            padded = self.nodes.op("Pad", x, torch.tensor([0, self.weights.past, 0, 0, 0] + [0] * 5))
            views = [padded.cut(1, lag, lag + count) for lag in range(self.weights.past + 1)]
            stacked = self.nodes.concat(views, axis=2).reshape(-1, len(views) * channels, side, side)
            x = self._convolve(stacked, block)
        return self._tokens(x).reshape(-1, count, side * side, self.weights.position.shape[1])

    def _patches(self, frames: Value) -> Value:
        """Normed patch embeddings (B, C, side, side)."""
        weight, bias = self.weights.patch
        x = self.nodes.conv(frames.to(self.dtype), weight, bias, stride=weight.shape[-1]).transpose(0, 2, 3, 1)
        return self.nodes.layer_norm(x, *self.weights.norm).transpose(0, 3, 1, 2)

    def _convolve(self, stacked: Value, block: tuple[Tensor, Tensor]) -> Value:
        return self.nodes.op("Relu", self.nodes.conv(stacked, *block))

    def _tokens(self, x: Value) -> Value:
        flat = x.reshape(0, self.weights.channels, -1).transpose(0, 2, 1)
        return (flat @ self.weights.project).to(torch.float32) + self.weights.position
