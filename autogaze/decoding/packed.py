"""The decoder's layers with their weights put together, so that a pass is few operations: decoding without kernels.

Key and value are one product, and so are gate and up; the weights of the norms before them are folded in. The
two coordinates that a rotary angle turns stand side by side (half a head apart in `network.decoder`), which makes the
rotation one complex product; queries and keys change alike, so attention does not notice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from autogaze.decoding import onednn
from autogaze.decoding.choice import choose_group
from autogaze.network.decoder import Attend, DecoderLayer, GazeDecoder

if TYPE_CHECKING:
    from autogaze.decoding.cache import Cache


class Product:
    """x -> x W^T."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self.packed = weight.to_mkldnn() if onednn.fits(weight) else None

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed is None or x.shape[:-1].numel() < onednn.MANY_TOKENS or onednn.casts():
            return F.linear(x, self.weight)
        return onednn.multiply(x, self.packed)


class PackedLayer:
    """A decoder layer; the weights of its norms, times the square root of the width, are folded into the products."""

    def __init__(self, layer: DecoderLayer, only_last: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.heads, self.only_last = attention.heads, only_last
        width = layer.input_layernorm.weight.numel()
        norms = (layer.input_layernorm, layer.post_attention_layernorm)
        before, between = (norm.weight * width**0.5 for norm in norms)
        self.floors = [norm.weight.new_tensor((width * norm.eps) ** 0.5, dtype=torch.float32) for norm in norms]
        query, key = (
            side_by_side(linear.weight, self.heads) * before for linear in (attention.q_proj, attention.k_proj)
        )
        value = attention.v_proj.weight * before
        self.to_parts = (
            [Product(query), Product(torch.cat([key, value]))]
            if only_last
            else [Product(torch.cat([query, key, value]))]
        )
        self.to_out, self.to_x = Product(attention.o_proj.weight), Product(mlp.down_proj.weight)
        self.to_gates = Product(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]) * between)

    def __call__(self, index: int, x: Tensor, turns: Tensor, attend: Attend) -> Tensor:
        """Outputs of tokens (B, n, width), or of the last one."""
        query, key, value = self._parts(normed(x, self.floors[0]), turns)
        out = attend(index, query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        x = (x[:, -1:] if self.only_last else x) + self.to_out(out.transpose(1, 2).flatten(2))
        gate, up = self.to_gates(normed(x, self.floors[1])).chunk(2, dim=-1)
        return x + self.to_x(F.silu(gate).mul_(up))

    def _parts(self, x: Tensor, turns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, n, heads, head_dim); with `only_last` one query."""
        if self.only_last:
            to_query, to_pair = self.to_parts
            key, value = to_pair(x).unflatten(-1, (2, self.heads, -1)).unbind(2)
            query = to_query(x[:, -1:]).unflatten(-1, (self.heads, -1))
            return rotate(query, turns[-1:]), rotate(key, turns), value
        parts = self.to_parts[0](x).unflatten(-1, (3, self.heads, -1))
        query, key = rotate(parts[:, :, :2], turns[:, None]).unbind(2)
        return query, key, parts[:, :, 2]


class Trunk:
    """What caches are made for: the shape of keys and values, and their rotation."""

    def __init__(self, decoder: GazeDecoder) -> None:
        attention = cast(DecoderLayer, decoder.model.layers[0]).self_attn
        self.frequencies, self.layer_count, self.heads = (
            decoder.model.frequencies,
            len(decoder.model.layers),
            attention.heads,
        )
        self.head_dim = attention.q_proj.out_features // self.heads

    def turns(self, positions: Tensor) -> Tensor:
        """(n, 1, head_dim / 2) complex rotation of every position (n,)."""
        angles = positions[:, None, None].float() * self.frequencies
        return torch.complex(angles.cos(), angles.sin())


class PackedTrunk(Trunk):
    """What `DecoderTrunk` computes, of its weights as they are now; no gradients."""

    def __init__(self, decoder: GazeDecoder) -> None:
        super().__init__(decoder)
        self.decoder, self.norm = decoder, decoder.model.norm
        layers = [cast(DecoderLayer, layer) for layer in decoder.model.layers]
        self.layers = [PackedLayer(layer, only_last=layer is layers[-1]) for layer in layers]

    def __call__(self, x: Tensor, turns: Tensor, attend: Attend) -> Tensor:
        """The last state (B, width), normed, of new tokens (B, n, width) with the `turns` of their positions."""
        for index, layer in enumerate(self.layers):
            x = layer(index, x, turns, attend)
        return self.norm(x[:, -1])

    def scores(self, tokens: Tensor, turns: Tensor, cache: Cache) -> tuple[Tensor, Tensor]:
        """Logits (B, K, vocabulary) and predicted losses (B, K), float32, after new tokens (B, n, width).

        Their keys and values are written to the cache behind those held, and are not counted yet.
        """
        return self.decoder.heads(self(tokens, turns, cache.attend))

    choose = staticmethod(choose_group)


def side_by_side(weight: Tensor, heads: int) -> Tensor:
    """Rows of a query or key projection with the two coordinates of an angle next to each other."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def normed(x: Tensor, floor: Tensor) -> Tensor:
    """RMS norm without weights, times 1 / sqrt(width): x / sqrt(|x|^2 + floor^2), with floor^2 = width * eps."""
    exact = torch.promote_types(x.dtype, torch.float32)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=exact)
    return (x / length.hypot_(floor)).to(x.dtype)


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Turn x (..., head_dim) by complex numbers (..., head_dim / 2)."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)
