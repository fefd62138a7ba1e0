"""Preprocessing inside an exported graph: uint8 frames are resized and normalised as `autogaze.preprocess` does it.

Resizing to a fixed size is linear in rows and in columns, so each pass is one matrix product; results are rounded
to whole levels after each pass, as PIL does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from autogaze.export.nodes import Nodes, Value
from autogaze.preprocess import Preprocessor, _taps


def resized(
    nodes: Nodes, frames: Value, source: tuple[int, int], target: tuple[int, int], preprocessor: Preprocessor
) -> Value:
    """Resize frames (N, 3, H, W) float32, 0 to 255."""
    if source[1] != target[1]:
        frames = _levels(nodes, frames @ resize_matrix(source[1], target[1], preprocessor.resample).T)
    if source[0] != target[0]:
        frames = _levels(nodes, nodes.constant(resize_matrix(source[0], target[0], preprocessor.resample)) @ frames)
    return frames


def normalised(nodes: Nodes, frames: Value, preprocessor: Preprocessor) -> Value:
    """0 to 255 -> what the model takes."""
    x = frames * preprocessor.rescale_factor
    if preprocessor.offset:
        x = x - 1.0
    mean, std = (torch.tensor(v, dtype=torch.float32).view(3, 1, 1) for v in (preprocessor.mean, preprocessor.std))
    x = x - mean if bool(mean.any()) else x
    return x / std if bool((std != 1).any()) else x


def resize_matrix(source: int, target: int, resample: str) -> Tensor:
    """(target, source) float32 weights of one resizing pass."""
    first, weights = _taps(source, target, resample)
    matrix = torch.zeros(target, source + weights.shape[1], dtype=torch.float64)
    columns = first[:, None] + torch.arange(weights.shape[1])
    matrix.scatter_(1, columns, weights.double() / weights.double().sum(1, keepdim=True))
    return matrix[:, :source].float().contiguous()


def _levels(nodes: Nodes, x: Value) -> Value:
    return nodes.op("Clip", nodes.op("Floor", x + 0.5), 0.0, 255.0)
