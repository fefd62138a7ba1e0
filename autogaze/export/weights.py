"""A model's weights in the form that exported graphs use: fused, transposed, without what inference never needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from autogaze.decoder import DecoderLayer
from autogaze.model import AutoGaze
from autogaze.salience import Salience
from autogaze.seen import NEVER, SeenMemory


@dataclass(frozen=True, eq=False)
class NormWeights:
    """RMS norm; float32 in every graph."""

    weight: Tensor  # (width,)
    eps: float


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """One decoder layer."""

    heads: int
    project: Tensor  # (width, 5 * heads * head_dim): query, key, both turned, value
    out: Tensor  # (heads * head_dim, width)
    gate_up: Tensor  # (width, 2 * hidden)
    down: Tensor  # (hidden, width)
    norm_attention: NormWeights
    norm_mlp: NormWeights


@dataclass(frozen=True, eq=False)
class EncoderWeights:
    """The frame encoder. A convolution over several frames is one over their stacked channels."""

    side: int  # visual tokens a row
    past: int  # frames remembered by every block
    patch: tuple[Tensor, Tensor]  # (C, 3, patch, patch), (C,)
    norm: tuple[Tensor, Tensor, float]  # (C,), (C,), eps
    blocks: tuple[tuple[Tensor, Tensor], ...]  # (C, (past + 1) * C, k, k), (C,)
    project: Tensor  # (C, width)
    position: Tensor  # (side * side, width) float32, with the projection's bias and the embedding of "never seen"
    trace: Tensor | None  # (C, width): patch embeddings before their norm to traces; None: as in `GraphWeights.seen`

    @property
    def channels(self) -> int:
        return len(self.patch[1])


@dataclass(frozen=True, eq=False)
class SeenWeights:
    """What a model knows of places that it looked at."""

    levels: Tensor  # (scales + 1, width) float32 embeddings, less that of "never", which is part of the positions
    patch_at: Tensor  # (scales, side * side) int64: the patch of each scale at each place
    patches: int  # ids a frame


@dataclass(frozen=True, eq=False)
class SalienceWeights:
    """Ratings of places, and how a patch is scored by them; float32 after the hidden layer."""

    hidden: tuple[Tensor, Tensor]  # (width, width), (width,)
    rating: Tensor  # (width, scales)
    pool: Tensor  # (side * side, patches): the mean over the places of each patch
    own: Tensor  # (scales, patches): 1 at the scale of each patch
    bias: Tensor  # (patches,): of the rating at the scale of each patch


@dataclass(frozen=True, eq=False)
class GraphWeights:
    """Everything that an exported graph knows of a model."""

    encoder: EncoderWeights
    layers: tuple[LayerWeights, ...]
    norm: NormWeights
    head: Tensor  # (width, K * patches + K): logits without eos head by head, then predicted losses
    embeddings: Tensor  # (patches + 1, width) float32, `eos` last
    frequencies: Tensor  # (head_dim / 2,) float32 angles per position
    seen: SeenWeights | None  # None: the model does not remember what it saw
    salience: SalienceWeights | None  # None: only the heads score patches


def graph_weights(model: AutoGaze, dtype: torch.dtype) -> GraphWeights:
    """Rearrange a model's weights.

    Args:
        model: on any device; not changed.
        dtype: of the matrices; norms, embeddings and positions stay float32, as does the residual stream.
            With bfloat16 the encoder is float32 too: ONNX has no bfloat16 convolution before opset 22.
    """
    decoder, group = model.gaze_decoder, model.config.num_multi_token_pred
    logits = decoder.lm_head.weight.unflatten(0, (group, -1))[:, :-1].flatten(0, 1)
    head = torch.cat([logits, decoder.task_loss_prediction_head.weight]).T
    return GraphWeights(
        encoder=_encoder(model, encoder_dtype(dtype)),
        layers=tuple(_layer(cast(DecoderLayer, layer), dtype) for layer in decoder.model.layers),
        norm=_norm(decoder.model.norm),
        head=_plain(head, dtype),
        embeddings=_plain(decoder.model.embed_tokens.weight, torch.float32),
        frequencies=_plain(decoder.model.frequencies, torch.float32),
        seen=None if model.seen is None else _seen(model.seen),
        salience=None if model.salience is None else _salience(model.salience, dtype),
    )


def encoder_dtype(dtype: torch.dtype) -> torch.dtype:
    """Element type of the encoder in a graph of this type."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def _layer(layer: DecoderLayer, dtype: torch.dtype) -> LayerWeights:
    attention, mlp = layer.self_attn, layer.mlp
    query, key, value = (
        p.weight.float().unflatten(0, (attention.heads, -1))
        for p in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    query = query * query.shape[1] ** -0.5
    # Rotary positions are x * cos + turn(x) * sin, and turn is linear: a projection of its own costs no extra node.
    fused = torch.cat([query, key, _turn(query), _turn(key), value]).flatten(0, 1)
    gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
    return LayerWeights(
        attention.heads,
        _plain(fused.T, dtype),
        _plain(attention.o_proj.weight.T, dtype),
        _plain(gate_up.T, dtype),
        _plain(mlp.down_proj.weight.T, dtype),
        _norm(layer.input_layernorm),
        _norm(layer.post_attention_layernorm),
    )


def _encoder(model: AutoGaze, dtype: torch.dtype) -> EncoderWeights:
    vision, seen = model.vision_model, model.seen
    position = vision.out_proj.bias + model.connector.pos_embed
    if seen is not None:
        position = position.float() + seen.level_embed.weight[NEVER]
    return EncoderWeights(
        side=vision.side,
        past=vision.past_frames,
        patch=(_plain(vision.temporal_conv.weight[:, :, 0], dtype), _plain(vision.temporal_conv.bias, dtype)),
        norm=(_plain(vision.norm.weight, dtype), _plain(vision.norm.bias, dtype), vision.norm.eps),
        blocks=tuple(
            (_plain(block.conv3d.weight.transpose(1, 2).flatten(1, 2), dtype), _plain(block.conv3d.bias, dtype))
            for block in vision.blocks
        ),
        project=_plain(vision.out_proj.weight.flatten(1).T, dtype),
        position=_plain(position, torch.float32),
        trace=None if seen is None else _plain(seen.trace_proj.weight.T, dtype),
    )


def _seen(seen: SeenMemory) -> SeenWeights:
    levels = _plain(seen.level_embed.weight, torch.float32)
    return SeenWeights(levels - levels[NEVER], _plain(seen.patch_at, torch.int64), seen.patches)


def _salience(salience: Salience, dtype: torch.dtype) -> SalienceWeights:
    hidden, rating, scales = salience.hidden, salience.rating, len(salience.patch_at)
    pool = _plain(salience.pool, torch.float32).unflatten(0, (scales, -1))  # no patch has places at two scales
    own = (pool > 0).any(1).float()
    return SalienceWeights(
        (_plain(hidden.weight.T, dtype), _plain(hidden.bias, dtype)),
        _plain(rating.weight.T, torch.float32),
        pool.sum(0),
        own,
        _plain(rating.bias, torch.float32) @ own,
    )


def _norm(norm: nn.RMSNorm) -> NormWeights:
    return NormWeights(_plain(norm.weight, torch.float32), cast(float, norm.eps))


def _turn(weight: Tensor) -> Tensor:
    """Rows of a projection (heads, head_dim, width) so that it yields the quarter turn of every rotary pair."""
    left, right = weight.chunk(2, dim=1)
    return torch.cat([-right, left], dim=1)


def _plain(tensor: Any, dtype: torch.dtype) -> Tensor:
    return tensor.detach().cpu().to(dtype).contiguous()
