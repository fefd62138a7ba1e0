"""Scores of patches that are read at their own places, in an exported graph (`autogaze.salience`).

One product averages the ratings of every scale over the places of every patch, and each patch keeps the row of its own
scale: with four scales that is a quarter of the module's pool, which is zero wherever scales differ.
"""

from __future__ import annotations

import torch

from autogaze.export.nodes import Nodes, Value
from autogaze.export.weights import SalienceWeights


def salience(nodes: Nodes, weights: SalienceWeights, visual: Value) -> Value:
    """What is added to every head's logits in a frame: (B, patches) float32.

    Args:
        visual: (B, N, width) float32, as the decoder gets them.
    """
    weight, bias = weights.hidden
    hidden = visual.to(weight.dtype) @ weight + bias
    hidden = (hidden * nodes.op("Sigmoid", hidden)).to(torch.float32)
    ratings = (hidden @ weights.rating).transpose(0, 2, 1)  # (B, scales, N)
    return (ratings @ weights.pool * weights.own).sum(1) + weights.bias
