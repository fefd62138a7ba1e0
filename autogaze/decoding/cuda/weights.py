"""A model's weights as the kernels read them."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from autogaze.decoding.cuda import cluster
from autogaze.decoding.weights import FoldedLayer, FoldedWeights, fold
from autogaze.network.decoder import DecoderLayer, GazeDecoder
from autogaze.network.residual import ResidualMap


@torch.inference_mode(False)
@torch.no_grad()
def lay_out(decoder: GazeDecoder, dtype: torch.dtype, residual_map: ResidualMap | None) -> dict[str, Tensor]:
    """The decoder's matrices in one dtype, input-major; in bfloat16 also as the cluster kernel reads them. And the
    parameters of the residual map."""
    trunk, folded = decoder.model, fold(decoder)
    heads, nothing = cast(DecoderLayer, trunk.layers[0]).self_attn.heads, trunk.frequencies.new_zeros(0)
    tensors = {"embedding": trunk.embed_tokens.weight.to(dtype).clone(), "frequencies": trunk.frequencies.clone()}
    tensors["error_weight"] = nothing
    if residual_map is not None:
        parts = [residual_map.weight.float().clamp(min=0)]
        if residual_map.response is not None and residual_map.gate is not None:
            gate = residual_map.gate
            parts += [part.float().flatten() for part in (residual_map.response, gate.weight, gate.bias)]
        tensors["error_weight"] = torch.cat(parts)
    tensors["strength"] = nothing if residual_map is None else residual_map.strength.float().reshape(1).clone()
    tensors |= input_major(folded, dtype, heads)
    if dtype == torch.bfloat16 and len(folded[0][0].gate) % (cluster.SPLIT * heads) == 0:
        tensors |= cluster.output_major(folded, heads)
    return tensors


def input_major(weights: FoldedWeights, dtype: torch.dtype, heads: int) -> dict[str, Tensor]:
    """Every matrix transposed; queries and keys in one, first halves of all heads, then second halves, of each."""

    def matrices(layer: FoldedLayer) -> dict[str, Tensor]:
        halves = [half for part in (layer.query, layer.key) for half in part.unflatten(0, (heads, 2, -1)).unbind(1)]
        query_key = torch.cat([half.flatten(0, 1) for half in halves])
        values, gates = {"wv": layer.value, "wo": layer.out}, {"wg": layer.gate, "wu": layer.up, "wd": layer.down}
        return {"wqk": query_key, **values, **gates}

    layers, logits, losses = weights
    laid_out = {
        f"{name}{i}": matrix.t().to(dtype).contiguous()
        for i, layer in enumerate(layers)
        for name, matrix in matrices(layer).items()
    }
    return laid_out | {"wl": logits.t().to(dtype).contiguous(), "wt": losses.to(dtype).contiguous()}
