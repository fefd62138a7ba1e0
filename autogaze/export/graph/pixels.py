"""Preprocessing inside an exported graph: uint8 frames are resized and normalised as `media.preprocess` does it.

Resizing to a fixed size is linear in rows and in columns, so each pass is one matrix product. PIL computes in 22-bit
fixed point; here each weight is split into its upper and lower 11 bits, whose sums are whole numbers that float32
(even TF32) holds exactly, so that every pixel comes out the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from autogaze.export.graph.nodes import Nodes, Value
from autogaze.media.preprocess import WEIGHT_BITS, Preprocessor, filter_taps

HALF = 1 << (WEIGHT_BITS // 2)


def resized(
    nodes: Nodes, frames: Value, source: tuple[int, int], target: tuple[int, int], preprocessor: Preprocessor
) -> Value:
    """Resize frames (N, 3, H, W) float32, whole numbers from 0 to 255."""
    if source[1] != target[1]:
        weights = _halves(source[1], target[1], preprocessor.resample)
        frames = _levels(nodes, *(frames @ weights.T.contiguous()).split([target[1]] * 2, axis=-1))
    if source[0] != target[0]:
        weights = _halves(source[0], target[0], preprocessor.resample)
        frames = _levels(nodes, *(nodes.constant(weights) @ frames).split([target[0]] * 2, axis=-2))
    return frames


def normalised(nodes: Nodes, frames: Value, preprocessor: Preprocessor) -> Value:
    """0 to 255 -> what the model takes."""
    x = frames * preprocessor.rescale_factor
    if preprocessor.offset:
        x = x - 1.0
    mean, std = (torch.tensor(v, dtype=torch.float32).view(3, 1, 1) for v in (preprocessor.mean, preprocessor.std))
    x = x - mean if bool(mean.any()) else x
    return x / std if bool((std != 1).any()) else x


def _halves(source: int, target: int, resample: str) -> Tensor:
    """(2 * target, source) float32: upper, then lower halves of the fixed-point weights of a pass."""
    first, weights = filter_taps(source, target, resample)
    matrix = torch.zeros(target, source + weights.shape[1], dtype=torch.int64)
    matrix.scatter_(1, first[:, None] + torch.arange(weights.shape[1]), weights.long())
    matrix = matrix[:, :source]  # the weights beyond the edge are 0
    upper = matrix.div(HALF, rounding_mode="floor")
    return torch.cat([upper, matrix - upper * HALF]).float()


def _levels(nodes: Nodes, upper: Value, lower: Value) -> Value:
    """Levels from 0 to 255 of the two halves of a fixed-point sum, rounded to the nearest."""
    carried = upper + nodes.op("Floor", lower * (1 / HALF)) + float(HALF // 2)
    return nodes.op("Clip", nodes.op("Floor", carried * (1 / HALF)), 0.0, 255.0)
