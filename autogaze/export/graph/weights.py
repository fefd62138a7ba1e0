"""A model's weights in the form that exported graphs use: fused, transposed, without what inference never needs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from autogaze.model import AutoGaze
from autogaze.network.decoder import DecoderLayer
from autogaze.network.encoder import CausalConv3d
from autogaze.network.residual import ResidualMap, patch_at


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
    position: Tensor  # (side * side, width) float32, with the projection's bias

    @property
    def channels(self) -> int:
        return len(self.patch[1])


@dataclass(frozen=True, eq=False)
class ResidualWeights:
    """Weights of the residual map, for errors of cells and scores of patches. N = side * side cells, P patches."""

    weight: tuple[float, ...]  # of absolute differences and steps; of means of blocks too in a perceptual map
    response: tuple[float, ...]  # of a perceptual map: see `ResidualMap.response`; empty in others
    smoothing: Tensor | None  # (S, S) float32: rows and columns of a frame go through it; None: frames as they are
    gate: tuple[Tensor, Tensor] | None  # of a perceptual map: (width, scales) and (scales,) float32
    strength: float  # of the scores
    blocks: tuple[int, ...]  # a scale: pixels of the side of a block that a look leaves as one colour
    side: int  # cells a row
    cell_px: int
    cover: Tensor  # (P, N) int32: the level of a patch at the cells in it, else 0
    pool: Tensor  # ((scales - 1) * N, P - N) float32: 1 where a cell is in a patch; a patch of the finest is a cell


@dataclass(frozen=True, eq=False)
class GraphWeights:
    """Everything that an exported graph knows of a model."""

    encoder: EncoderWeights
    layers: tuple[LayerWeights, ...]
    norm: NormWeights
    head: Tensor  # (width, K * patches + K): logits without eos head by head, then predicted losses if heads predict
    embeddings: Tensor  # (patches + 1, width) float32, `eos` last
    frequencies: Tensor  # (head_dim / 2,) float32 angles per position
    patch_at: Tensor  # (scales, side * side) int64: the patch of each scale in each cell
    residual_map: ResidualWeights | None  # None: only the heads score patches and predict losses


def graph_weights(model: AutoGaze, dtype: torch.dtype) -> GraphWeights:
    """Rearrange a model's weights.

    Args:
        model: on any device; not changed.
        dtype: of the matrices; norms, embeddings and positions stay float32, as does the residual stream.
            With bfloat16 the encoder is float32 too: ONNX has no bfloat16 convolution before opset 22.
    """
    decoder, group = model.gaze_decoder, model.config.num_multi_token_pred
    logits = decoder.lm_head.weight.unflatten(0, (group, -1))[:, :-1].flatten(0, 1)
    losses = [] if model.residual_map else [decoder.task_loss_prediction_head.weight]
    head, lines = torch.cat([logits, *losses]).T, model.smoothing(torch.device("cpu"))
    return GraphWeights(
        encoder=_encoder(model, encoder_dtype(dtype)),
        layers=tuple(_layer(cast(DecoderLayer, layer), dtype) for layer in decoder.model.layers),
        norm=_norm(decoder.model.norm),
        head=_plain(head, dtype),
        embeddings=_plain(decoder.model.embed_tokens.weight, torch.float32),
        frequencies=_plain(decoder.model.frequencies, torch.float32),
        patch_at=patch_at(model.grid, model.vision_model.side),
        residual_map=None if model.residual_map is None else _residual_map(model.residual_map, lines),
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
    vision = model.vision_model
    position = cast(Tensor, vision.out_proj.bias) + model.connector.pos_embed
    return EncoderWeights(
        side=vision.side,
        past=vision.past_frames,
        patch=(_plain(vision.temporal_conv.weight[:, :, 0], dtype), _plain(vision.temporal_conv.bias, dtype)),
        norm=(_plain(vision.norm.weight, dtype), _plain(vision.norm.bias, dtype), vision.norm.eps),
        blocks=tuple(
            (_plain(block.conv3d.weight.transpose(1, 2).flatten(1, 2), dtype), _plain(block.conv3d.bias, dtype))
            for block in cast(Iterable[CausalConv3d], vision.blocks)
        ),
        project=_plain(vision.out_proj.weight.flatten(1).T, dtype),
        position=_plain(position, torch.float32),
    )


def _residual_map(rule: ResidualMap, lines: Tensor | None) -> ResidualWeights:
    weight = tuple(rule.weight.float().clamp(min=0).tolist())
    response = () if rule.response is None else tuple(rule.response.float().tolist())
    gate = None if rule.gate is None else (rule.gate.weight.t(), rule.gate.bias)
    *coarser, _ = rule.cover.gt(0).t().cpu().split(rule.counts, dim=1)
    return ResidualWeights(
        weight,
        response,
        None if lines is None else _plain(lines, torch.float32),
        None if gate is None else (_plain(gate[0], torch.float32), _plain(gate[1], torch.float32)),
        rule.strength.item(),
        rule.blocks,
        rule.side,
        rule.cell_px,
        _plain(rule.cover, torch.int32),
        torch.block_diag(*coarser).float() if coarser else torch.zeros(0, 0),
    )


def _norm(norm: nn.RMSNorm) -> NormWeights:
    return NormWeights(_plain(norm.weight, torch.float32), cast(float, norm.eps))


def _turn(weight: Tensor) -> Tensor:
    """Rows of a projection (heads, head_dim, width) so that it yields the quarter turn of every rotary pair."""
    left, right = weight.chunk(2, dim=1)
    return torch.cat([-right, left], dim=1)


def _plain(tensor: Any, dtype: torch.dtype) -> Tensor:
    return tensor.detach().cpu().to(dtype).contiguous()
