"""Attention of packed rows, which stays inside the bounds of their layout (`autogaze.vit.packing`).

On a GPU (bf16, fp16) it is torch's variable-length flash kernel: no padding, no mask. Elsewhere it is masked
`scaled_dot_product_attention` over padded runs: the same numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from autogaze.vit.packing import Layout, padded_rows

# Rows of a regular run from which `scaled_dot_product_attention` takes the place of the variable-length kernel. That is
# FlashAttention 2, older than Hopper, for which torch prefers cuDNN: on an H200 it takes 0.6 to 0.9 of the time at 64
# rows and above, with heads of 64 and of 72; at 26 rows heads of 72 are slower (docs/log.md).
LONG_RUN = 64


def packed_attention(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float | None = None, offsets: Tensor | None = None
) -> Tensor:
    """Attention of packed rows: every row sees its run; block-causal, also the earlier runs of its group.

    Args:
        q, k, v: (M, heads, head size).
        scale: of the scores; 1 / sqrt(head size) by default.
        offsets: (S, Lk, heads, head size) added to the keys, with memory: of their age.

    Returns:
        (M, heads, head size); without a gradient, filler rows are undefined.
    """
    if layout.keys is not None and layout.key_counts is not None:
        return _remembering(q, k, v, layout, layout.keys, layout.key_counts, scale, offsets)
    if layout.regular and (layout.longest_run >= LONG_RUN or not has_flash(q)):
        return _regular(q, k, v, layout.longest_run, scale)
    if not has_flash(q):
        return _masked(q, k, v, layout, scale)
    if not _differentiable(q, k, v):
        return _flash_runs(q, k, v, layout, scale)
    # The kernels leave filler rows of the output and of the gradients as the memory was: NaN would spread from there.
    real = (torch.arange(len(q), device=q.device) < layout.runs[-1])[:, None, None]
    q, k, v = (x.where(real, 0.0) for x in (q, k, v))
    return _flash_runs(q, k, v, layout, scale).where(real, 0.0)


def pooled_attention(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, longest: int, scale: float | None = None
) -> Tensor:
    """One query for every stretch of packed keys.

    Args:
        q: (S, heads, head size).
        k, v: (N, heads, head size).
        offsets: (S + 1,) int32: query s sees rows [offsets[s], offsets[s + 1]).
        longest: at least the longest stretch.

    Returns:
        (S, heads, head size); zeros where a stretch is empty.
    """
    if len(k) == 0:
        return torch.zeros_like(q)
    if has_flash(q):
        if _differentiable(q, k, v):
            real = (torch.arange(len(k), device=k.device) < offsets[-1])[:, None, None]
            k, v = k.where(real, 0.0), v.where(real, 0.0)
        ones = torch.arange(len(offsets), device=q.device, dtype=torch.int32)
        pooled = _flash(q.contiguous(), k, v, ones, offsets, 1, longest, scale)
    else:
        rows, valid = padded_rows(offsets, longest, len(k))
        mask = valid.index_fill(1, torch.zeros(1, dtype=torch.int64, device=q.device), True)
        keys, values = k[rows].transpose(1, 2), v[rows].transpose(1, 2)
        pooled = F.scaled_dot_product_attention(q[:, :, None], keys, values, mask[:, None, None], scale=scale)[:, :, 0]
    return pooled.where((offsets[1:] > offsets[:-1])[:, None, None], 0.0)


def has_flash(q: Tensor) -> bool:
    """Whether torch's flash kernel takes these queries."""
    return q.is_cuda and q.dtype in (torch.bfloat16, torch.float16) and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256


def _differentiable(*inputs: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in inputs)


def _regular(q: Tensor, k: Tensor, v: Tensor, length: int, scale: float | None) -> Tensor:
    """Attention within every `length` rows, by the fastest kernel that torch has for a plain batch of sequences."""
    q, k, v = (x.unflatten(0, (-1, length)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(0, 1)


def _remembering(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Layout,
    keys: Tensor,
    counts: Tensor,
    scale: float | None,
    offsets: Tensor | None,
) -> Tensor:
    """Attention with memory: every run's queries over key rows of their own, from anywhere."""
    if len(q) == 0:
        return torch.zeros_like(q)
    valid = torch.arange(keys.shape[1], device=q.device) < counts[:, None]
    if not has_flash(q):
        return _masked_keys(q, k, v, layout, keys, valid, scale, offsets)
    if not _differentiable(q, k, v, *([] if offsets is None else [offsets])):
        starts = keys.shape[1] * torch.arange(len(keys) + 1, device=q.device, dtype=torch.int32)
        found = k[keys] if offsets is None else k[keys] + offsets.to(k.dtype)
        return _flash(
            q,
            found.flatten(0, 1),
            v[keys].flatten(0, 1),
            layout.runs,
            starts,
            layout.longest_run,
            keys.shape[1],
            scale,
            counts.to(torch.int32),
        )
    real = (torch.arange(len(q), device=q.device) < layout.runs[-1])[:, None, None]
    ends = counts.cumsum(0)
    bounds = torch.cat([ends.new_zeros(1), ends]).to(torch.int32)
    rows = keys[valid]
    found = k[rows] if offsets is None else k[rows] + offsets[valid].to(k.dtype)
    out = _flash(q.where(real, 0.0), found, v[rows], layout.runs, bounds, layout.longest_run, keys.shape[1], scale)
    return out.where(real, 0.0)


def _masked_keys(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Layout,
    keys: Tensor,
    valid: Tensor,
    scale: float | None,
    offsets: Tensor | None,
) -> Tensor:
    """Frames of about one length together: the first frame of a clip may be many times as long as the others."""
    first = torch.zeros(1, dtype=torch.int64, device=q.device)
    mask = valid.index_fill(1, first, True)[:, None, None]
    if q.device.type != "cpu" or torch.compiler.is_compiling():
        parts = [(torch.arange(len(keys), device=q.device), layout.longest_run)]
    else:
        parts = _by_length(layout.runs.diff())
    out = torch.zeros_like(q)
    for runs, longest in parts:
        rows = layout.runs[runs, None].long() + torch.arange(longest, device=q.device)
        real = rows < layout.runs[runs + 1, None]
        rows = rows.clamp(max=len(q) - 1)
        taken = keys[runs]
        taken_keys = k[taken] if offsets is None else k[taken] + offsets[runs].to(k.dtype)
        found = F.scaled_dot_product_attention(
            q[rows].transpose(1, 2), taken_keys.transpose(1, 2), v[taken].transpose(1, 2), mask[runs], scale=scale
        ).transpose(1, 2)
        target = rows.where(real, len(q)).flatten()
        out = torch.cat([out, out[:1]]).index_copy(0, target, found.flatten(0, 1))[:-1]
    return out


def _by_length(lengths: Tensor) -> list[tuple[Tensor, int]]:
    """Runs with at most twice the length of one another, and the longest of them."""
    steps = lengths.clamp(min=1).double().log2().floor().long()
    groups = [(steps == step).nonzero()[:, 0] for step in steps[lengths > 0].unique().tolist()]
    return [(runs, int(lengths[runs].max())) for runs in groups]


def _flash_runs(q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float | None) -> Tensor:
    runs = layout.runs
    if not layout.block_causal:
        return _flash(q, k, v, runs, runs, layout.longest_run, layout.longest_run, scale)
    frames = (len(runs) - 1) // (len(layout.groups) - 1)
    starts = layout.groups[:-1].repeat_interleave(frames)
    lengths = runs[1:] - starts
    if not _differentiable(q, k, v):
        # Runs share keys: the kernel takes a start and a length for each, so nothing is copied. It has no backward.
        starts = torch.cat([starts, layout.groups[-1:]])
        return _flash(q, k, v, runs, starts, layout.longest_run, layout.longest_group, scale, lengths)
    # With a gradient each run's keys are copied, (frames + 1) / 2 times in all.
    ends = lengths.long().cumsum(0)
    offsets = torch.cat([ends.new_zeros(1), ends])
    shift = (starts.long() - offsets[:-1]).repeat_interleave(lengths.long())
    rows = torch.arange(len(shift), device=q.device) + shift
    return _flash(q, k[rows], v[rows], runs, offsets.to(torch.int32), layout.longest_run, layout.longest_group, scale)


def _flash(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    runs_q: Tensor,
    runs_k: Tensor,
    longest_q: int,
    longest_k: int,
    scale: float | None,
    lengths_k: Tensor | None = None,
) -> Tensor:
    """torch's variable-length flash attention; the public `varlen_attn` (torch 2.10) takes no `lengths_k`."""
    return torch.ops.aten._flash_attention_forward(
        q, k, v, runs_q, runs_k, longest_q, longest_k, 0.0, False, False, scale=scale, seqused_k=lengths_k
    )[0]  # fmt: skip


def _masked(q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float | None) -> Tensor:
    if len(q) == 0:
        return torch.zeros_like(v)
    rows, valid = padded_rows(layout.groups, layout.longest_group, len(q))
    mask = valid[:, None, None]
    if layout.block_causal:
        frame = torch.bucketize(rows, layout.runs[1:], right=True)
        mask = mask & (frame[:, None, :, None] >= frame[:, None, None, :])
    first = torch.zeros(1, dtype=torch.int64, device=q.device)
    mask = mask.index_fill(-1, first, True)  # a padded query must see something, or its NaN reaches the gradient
    q_padded, k, v = (x[rows].transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q_padded, k, v, mask, scale=scale).transpose(1, 2)
    row = torch.arange(len(q), device=q.device)
    group = torch.bucketize(row, layout.groups[1:], right=True).clamp(max=len(layout.groups) - 2)
    return out[group, (row - layout.groups[group]).clamp(max=out.shape[1] - 1)]
