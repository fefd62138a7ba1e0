"""The gaze decoder: a LLaMA-style transformer that reads visual tokens and writes patch ids.

The sequence of a clip is, frame after frame, [visual tokens][gaze tokens]. Two heads read the last normed state:
`lm_head` gives K x vocabulary logits (K ids at once), `task_loss_prediction_head` K reconstruction losses.
Parameter names are those of the published checkpoints. How ids are chosen lives in `autogaze.decoding`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autogaze.network.constants import Constants


@dataclass(frozen=True)
class RopeConfig:
    """Rotary positions with the `llama3` frequency scaling (Llama 3.1 report, sec. 3.2)."""

    theta: float = 500000.0
    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192
    scaled: bool = True  # False: plain rotary positions

    def frequencies(self, head_dim: int) -> Tensor:
        """(head_dim / 2,) float32 angles per position, on the CPU."""
        plain = self.theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim)
        if not self.scaled:
            return plain
        wavelength = 2 * math.pi / plain
        low = self.original_max_position / self.low_freq_factor
        high = self.original_max_position / self.high_freq_factor
        blend = (self.original_max_position / wavelength - self.low_freq_factor) / (
            self.high_freq_factor - self.low_freq_factor
        )
        blended = (1 - blend) * plain / self.factor + blend * plain
        return torch.where(wavelength > low, plain / self.factor, torch.where(wavelength < high, plain, blended))


def rotation(positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every position, (..., 1, N, head_dim) for positions (..., N)."""
    angles = positions[..., None].float() * frequencies.to(positions.device)
    angles = torch.cat([angles, angles], dim=-1).unsqueeze(-3)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions to (B, heads, N, head_dim); the two halves of a head are the two coordinates."""
    left, right = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat([-right, left], dim=-1) * sin.to(x.dtype)


class Attend(Protocol):
    """Attention of a layer, as a back end has it, of queries, keys and values (B, heads, N, head_dim)."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor: ...


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, heads * head_dim, bias=False)
        self.k_proj = nn.Linear(width, heads * head_dim, bias=False)
        self.v_proj = nn.Linear(width, heads * head_dim, bias=False)
        self.o_proj = nn.Linear(heads * head_dim, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, layer: int, attend: Attend) -> Tensor:
        query, key, value = (
            projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = attend(layer, rotate(query, cos, sin), rotate(key, cos, sin), value)
        return self.o_proj(out.transpose(1, 2).flatten(2))


class GatedMLP(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    def __init__(self, width: int, heads: int, head_dim: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(width, eps=eps)
        self.self_attn = SelfAttention(width, heads, head_dim)
        self.post_attention_layernorm = nn.RMSNorm(width, eps=eps)
        self.mlp = GatedMLP(width, hidden)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, layer: int, attend: Attend) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, layer, attend)
        return x + self.mlp(self.post_attention_layernorm(x))


class DecoderTrunk(nn.Module):
    """Token embeddings, layers and the final norm."""

    def __init__(
        self,
        vocabulary: int,
        width: int,
        layers: int,
        heads: int,
        head_dim: int,
        hidden: int,
        eps: float,
        rope: RopeConfig,
    ) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(DecoderLayer(width, heads, head_dim, hidden, eps) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=eps)
        self._constants = Constants(frequencies=rope.frequencies(head_dim))

    @property
    def frequencies(self) -> Tensor:
        """(head_dim / 2,) float32 angles per position, in every dtype of the model: a position of thousands needs
        them."""
        return self._constants.on(self.norm.weight.device)["frequencies"]

    def forward(self, x: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Hidden states of new tokens.

        Args:
            x: (B, N, width) embeddings.
            positions: (B, N) or (1, N) int64 rotary positions.
            attend: keeps keys and values and returns the attention output of a layer.

        Returns:
            (B, N, width), normed.
        """
        cos, sin = rotation(positions, self.frequencies)
        for index, layer in enumerate(self.layers):
            x = layer(x, cos, sin, index, attend)
        return self.norm(x)


class GazeDecoder(nn.Module):
    """Trunk and heads; the vocabulary is the patch ids of a frame and `eos`, which is never chosen."""

    def __init__(
        self,
        patches_per_frame: int,
        width: int,
        layers: int,
        heads: int,
        head_dim: int,
        hidden: int,
        group: int,
        eps: float,
        rope: RopeConfig,
    ) -> None:
        super().__init__()
        self.vocabulary, self.group = patches_per_frame + 1, group
        self.model = DecoderTrunk(self.vocabulary, width, layers, heads, head_dim, hidden, eps, rope)
        self.lm_head = nn.Linear(width, group * self.vocabulary, bias=False)
        self.task_loss_prediction_head = nn.Linear(width, group, bias=False)

    def heads(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (..., K, vocabulary) and predicted losses (..., K), float32, of normed states (..., width)."""
        logits = self.lm_head(hidden).unflatten(-1, (self.group, self.vocabulary))
        return logits.float(), self.task_loss_prediction_head(hidden).float()
