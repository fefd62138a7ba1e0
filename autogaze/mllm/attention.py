"""Attention of a vision tower over packed rows that were cut: no padding, and no Python loop a segment.

A *segment* is a stretch of rows that see one another: a frame (pair), or what is left of a window. transformers' own
`sdpa` cuts packed rows into segments on the host and calls the kernel once for each: with windows that is thousands of
calls a layer. `within_segments` makes a tower use the function registered here for the length of a block: torch's
variable-length flash kernel on a GPU in bf16 or fp16, elsewhere `scaled_dot_product_attention` with segments of equal
length as a batch, which gives what one call a segment gives, to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedConfig

try:
    from torch.nn.attention import varlen
except ImportError:  # before torch 2.10
    varlen = None  # type: ignore[assignment]

NAME = "autogaze_flash_segments"  # transformers hands its own bounds to any attention with "flash" in its name


@dataclass(frozen=True, eq=False)
class Segments:
    """Bounds of the segments of packed rows, on the device and on the host."""

    bounds: Tensor  # (S + 1,) int32 on the device of the rows
    lengths: tuple[int, ...]  # of every segment, all positive

    @classmethod
    def of(cls, lengths: Tensor, device: torch.device) -> Segments:
        """Segments of lengths that the host knows; empty ones are left out."""
        lengths = lengths[lengths > 0]
        bounds = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
        return cls(bounds.to(device, non_blocking=True), tuple(lengths.tolist()))

    @property
    def longest(self) -> int:
        return max(self.lengths, default=0)


_current: list[Segments] = []  # of towers that cannot hand bounds on, innermost last
_known: dict[int, Segments] = {}  # by the identity of `bounds`, of towers that do


@contextmanager
def within_segments(config: PreTrainedConfig, *segments: Segments, packed: bool = False) -> Iterator[None]:
    """Attention inside segments for the length of a block, in the layers that read this configuration.

    Args:
        config: of the vision tower.
        segments: every division that the layers use.
        packed: the layers do not know of bounds; all use the one division given.
    """
    before = config._attn_implementation
    config._attn_implementation = NAME
    _known.update({id(part.bounds): part for part in segments})
    _current.extend(segments if packed else ())
    try:
        yield
    finally:
        config._attn_implementation = before
        for part in segments:
            _known.pop(id(part.bounds), None)
        if packed:
            _current.pop()


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention that transformers calls in place of its own; the mask is not read.

    Args:
        query, key, value: (1, heads, M, head size).
        scaling: of the scores; 1 / sqrt(head size) by default.
        cu_seq_lens_q: bounds of the segments, from towers that hand them on.

    Returns:
        (1, M, heads, head size).
    """
    if cu_seq_lens_q is None:
        segments = _current[-1]
    else:  # unknown where a tensor was moved on its way, as with a model spread over devices
        segments = _known.get(id(cu_seq_lens_q)) or Segments.of(cu_seq_lens_q.cpu().diff(), query.device)
    q, k, v = (x[0] for x in (query, key, value))
    out = attend(q, k, v, segments, scaling)
    return out[None], None


def attend(q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float | None = None) -> Tensor:
    """(heads, M, head size) each -> (M, heads, head size): every row sees its segment."""
    if has_varlen(q):
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
        longest = segments.longest
        out = varlen.varlen_attn(q, k, v, segments.bounds, segments.bounds, longest, longest, scale=scale)
        assert isinstance(out, Tensor)  # nothing besides was asked for
        return out
    lengths = torch.tensor(segments.lengths)
    starts = F.pad(lengths.cumsum(0), (1, 0))[:-1]
    out = q.new_empty(q.shape[1], q.shape[0], v.shape[-1])
    for length in sorted(set(segments.lengths)):
        rows = starts[lengths == length][:, None] + torch.arange(length)  # (segments of this length, length)
        rows = rows.to(q.device)
        q_part, k_part, v_part = (x[:, rows].transpose(0, 1) for x in (q, k, v))
        out[rows] = F.scaled_dot_product_attention(q_part, k_part, v_part, scale=scale).transpose(1, 2)
    return out


def has_varlen(q: Tensor) -> bool:
    """Whether torch's variable-length kernel takes these queries, (..., head size)."""
    fits = q.is_cuda and q.dtype in (torch.bfloat16, torch.float16) and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256
    return fits and varlen is not None


AttentionInterface.register(NAME, segment_attention)
