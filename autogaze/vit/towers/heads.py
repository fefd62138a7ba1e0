"""Pooling over packed patches: each stretch gives what the dense head gives for an image of only these patches."""

from __future__ import annotations

import torch
from torch import Tensor

from autogaze.vit.features import PoolInput


def with_prefix(tokens: PoolInput) -> PoolInput:
    """Put class and register tokens among the patches of their stretch."""
    count = tokens.prefix.shape[1]
    if count == 0:
        return tokens
    stretches = len(tokens.offsets) - 1
    steps = count * torch.arange(stretches + 1, device=tokens.offsets.device, dtype=torch.int32)
    stretch = torch.arange(stretches, device=tokens.offsets.device).repeat_interleave(count)
    owner = torch.cat([stretch, stretch_of(tokens)])
    order = owner.sort(stable=True).indices
    features = torch.cat([tokens.prefix.flatten(0, 1), tokens.features])[order]
    return PoolInput(features, tokens.prefix, tokens.offsets + steps, tokens.longest + count)


def stretch_of(tokens: PoolInput) -> Tensor:
    """(N,) int64: the stretch of every row; S for filler."""
    row = torch.arange(len(tokens.features), device=tokens.offsets.device)
    return torch.bucketize(row, tokens.offsets[1:], right=True)


def mean(tokens: PoolInput) -> Tensor:
    """(S, D) mean of every stretch; zeros where it is empty."""
    stretches = len(tokens.offsets) - 1
    total = tokens.features.new_zeros(stretches + 1, tokens.features.shape[-1], dtype=torch.float32)
    total = total.index_add(0, stretch_of(tokens), tokens.features.float())[:-1]
    return (total / tokens.offsets.diff()[:, None].clamp(min=1)).to(tokens.features.dtype)


def largest(tokens: PoolInput) -> Tensor:
    """(S, D) maximum of every stretch; zeros where it is empty."""
    stretches = len(tokens.offsets) - 1
    index = stretch_of(tokens)[:, None].expand_as(tokens.features)
    start = tokens.features.new_full((stretches + 1, tokens.features.shape[-1]), -torch.inf)
    top = start.scatter_reduce(0, index, tokens.features, "amax")[:-1]
    return top.where((tokens.offsets.diff() > 0)[:, None], 0.0)


def empty_to_zero(pooled: Tensor, tokens: PoolInput) -> Tensor:
    """Zeros for stretches that hold nothing, whatever a head's biases make of it."""
    return pooled.where((tokens.offsets.diff() > 0)[:, None], 0.0)
