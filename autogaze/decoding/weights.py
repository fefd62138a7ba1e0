"""The decoder's weights with the norms' folded in, once for every back end; a back end only lays them out."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor

from autogaze.network.decoder import DecoderLayer, GazeDecoder


class FoldedLayer(NamedTuple):
    """Matrices of a layer, float32, output-major like those of `nn.Linear`; what multiplies normed states has the
    weight of the norm in it."""

    query: Tensor  # (heads x head_dim, width); of a head, the two halves are the coordinates that an angle turns
    key: Tensor
    value: Tensor
    out: Tensor  # (width, heads x head_dim)
    gate: Tensor  # (hidden, width)
    up: Tensor
    down: Tensor  # (width, hidden)


# All matrices: of the layers, of the logits (K x vocabulary, width) and of the predicted losses (K, width).
FoldedWeights = tuple[list[FoldedLayer], Tensor, Tensor]


@torch.no_grad()
def fold(decoder: GazeDecoder) -> FoldedWeights:
    """A decoder's weights as they are now."""
    trunk = decoder.model

    def folded(linear: torch.nn.Linear, norm: torch.nn.RMSNorm) -> Tensor:
        return linear.weight.float() * norm.weight.float()

    layers = []
    for layer in (cast(DecoderLayer, each) for each in trunk.layers):
        attention, mlp, before, between = (
            layer.self_attn,
            layer.mlp,
            layer.input_layernorm,
            layer.post_attention_layernorm,
        )
        layers.append(
            FoldedLayer(
                folded(attention.q_proj, before),
                folded(attention.k_proj, before),
                folded(attention.v_proj, before),
                attention.o_proj.weight.float(),
                folded(mlp.gate_proj, between),
                folded(mlp.up_proj, between),
                mlp.down_proj.weight.float(),
            )
        )
    return layers, folded(decoder.lm_head, trunk.norm), folded(decoder.task_loss_prediction_head, trunk.norm)
