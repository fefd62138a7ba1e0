"""The decoder's layers with their weights put together, so that a pass is few operations: decoding without kernels.

Key and value are one product, and so are gate and up; the weights of the norms before them are folded in. The
two coordinates that a rotary angle turns stand side by side (half a head apart in `autogaze.decoder`), which makes the
rotation one complex product; queries and keys change alike, so attention does not notice.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from autogaze.decoder import Attend, DecoderLayer, GazeDecoder

MANY_TOKENS = 64  # from here on oneDNN's matrix product, which has to copy its input, is the faster one on a CPU


class Product:
    """x -> x W^T."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        fits = weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()
        self.packed = weight.to_mkldnn() if fits else None

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed is None or x.shape[:-1].numel() < MANY_TOKENS:
            return F.linear(x, self.weight)
        return F.linear(x.flatten(0, -2).to_mkldnn(), self.packed).to_dense().unflatten(0, x.shape[:-1])


class PackedTrunk:
    """What `DecoderTrunk` computes, of its weights as they are now; no gradients."""

    def __init__(self, decoder: GazeDecoder) -> None:
        trunk = decoder.model
        self.frequencies, self.norm = trunk.frequencies, trunk.norm
        layers = [cast(DecoderLayer, layer) for layer in trunk.layers]
        attention = layers[0].self_attn
        self.heads, self.head_dim = attention.heads, attention.q_proj.out_features // attention.heads
        self.eps = [(layer.input_layernorm.eps, layer.post_attention_layernorm.eps) for layer in layers]
        self.layers = [[Product(weight) for weight in self._weights(layer)] for layer in layers]

    def _weights(self, layer: DecoderLayer) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Weights of query, of key and value, of the output, of gate and up, and of down."""
        attention, mlp = layer.self_attn, layer.mlp
        query, key = (self._side_by_side(linear.weight) for linear in (attention.q_proj, attention.k_proj))
        before, between = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
        return (query * before, torch.cat([key, attention.v_proj.weight]) * before, attention.o_proj.weight,
                torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]) * between, mlp.down_proj.weight)

    def _side_by_side(self, weight: Tensor) -> Tensor:
        """Rows of a query or key projection with the two coordinates of an angle next to each other."""
        return weight.unflatten(0, (self.heads, 2, -1)).transpose(1, 2).flatten(0, 2)

    def turns(self, positions: Tensor) -> Tensor:
        """(n, 1, head_dim / 2) complex rotation of every position (n,)."""
        angles = positions[:, None].float() * self.frequencies
        return torch.polar(torch.ones_like(angles), angles)[:, None]

    @staticmethod
    def rotate(x: Tensor, turns: Tensor) -> Tensor:
        """Turn x (..., head_dim) by complex numbers (..., head_dim / 2)."""
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)

    def __call__(self, x: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """The last state (B, width), normed, of new tokens (B, n, width) at rotary positions (n,)."""
        turns = self.turns(positions)
        for index in range(len(self.layers)):
            x = self._layer(index, x, turns, attend, 1 if index == len(self.layers) - 1 else x.shape[1])
        return self.norm(x[:, -1])

    def _layer(self, index: int, x: Tensor, turns: Tensor, attend: Attend, last: int) -> Tensor:
        """Outputs of the last `last` tokens."""
        (to_query, to_pair, to_out, to_gates, to_x), (eps, eps_between) = self.layers[index], self.eps[index]
        width = (x.shape[-1],)
        normed = F.rms_norm(x, width, eps=eps)
        key, value = to_pair(normed).unflatten(-1, (2, self.heads, -1)).unbind(2)
        query = to_query(normed[:, -last:]).unflatten(-1, (self.heads, -1))
        query, key = self.rotate(query, turns[-last:]), self.rotate(key, turns)
        out = attend(index, query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        x = x[:, -last:] + to_out(out.transpose(1, 2).flatten(2))
        gate, up = to_gates(F.rms_norm(x, width, eps=eps_between)).chunk(2, dim=-1)
        return x + to_x(F.silu(gate).mul_(up))
