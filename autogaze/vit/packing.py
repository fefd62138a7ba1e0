"""Packed tokens: every chosen patch once, nothing padded, and attention that stays inside its bounds.

Packed rows run clip after clip, frame after frame. A *run* is a stretch of rows that see the same keys: a frame, or a
whole clip for `attention="joint"`. Class and register tokens stand in front of their run. With runs of 3 and 2 patches
and 1 class token the rows are c p p p c p p, `runs` = (0, 4, 7), `patch_rows` = (1, 2, 3, 5, 6).

On a GPU (bf16, fp16) attention is torch's variable-length flash kernel: no padding, no mask. Elsewhere it is masked
`scaled_dot_product_attention` over padded runs: the same numbers.

With a capacity, shapes do not depend on the data: packed rows beyond the last chosen patch are filler that belongs to
no run. That form has no host sync and can be captured in a CUDA graph.

Where every slot of a gaze is chosen, and the host knows it, runs are *regular*: all have the same length, so packed
rows are a plain batch of sequences, which needs neither the variable-length kernel nor a mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from autogaze.core.gaze import Gaze
from autogaze.vit.memory import each_once

ATTENTION = ("frame", "block_causal", "joint", "memory", "nearest")
REMEMBERS = ("memory", "nearest")
# Rows of a regular run from which `scaled_dot_product_attention` takes the place of the variable-length kernel. That is
# FlashAttention 2, older than Hopper, for which torch prefers cuDNN: on an H200 it takes 0.6 to 0.9 of the time at 64
# rows and above, with heads of 64 and of 72; at 26 rows heads of 72 are slower (docs/log.md).
LONG_RUN = 64


@dataclass(frozen=True, eq=False)
class PackedIds:
    """The chosen patches of a gaze; like `Gaze.packed`, but with room for filler at the end."""

    ids: Tensor  # (N,) int64, local to their frame; 0 in filler
    clip: Tensor  # (N,) int64; 0 in filler
    frame: Tensor  # (N,) int64; 0 in filler
    offsets: Tensor  # (B * T + 1,) int32: frame t of clip b is rows [offsets[b * T + t], offsets[b * T + t + 1])
    whole: bool = False  # the host knows that every slot was chosen: K rows a frame, no filler

    @classmethod
    def of(cls, gaze: Gaze, capacity: int | None = None) -> PackedIds:
        """Pack a gaze.

        Args:
            gaze: (B, T, K).
            capacity: N, at least the number of chosen patches (the caller's word: it is not checked here, since that
                needs a host sync); None: exactly that number, which costs one host sync on a GPU.
        """
        if capacity is None:
            packed = gaze.packed()
            whole = 0 < gaze.ids.numel() == len(packed.ids)
            return cls(packed.ids, packed.clip, packed.frame, packed.frame_offsets, whole)
        if gaze.ids.shape[-1] == 0:  # no slot to point filler at
            gaze = replace(
                gaze,
                ids=gaze.ids.new_zeros(*gaze.ids.shape[:2], 1),
                task_loss=None,
                chosen=gaze.chosen.new_zeros(*gaze.ids.shape[:2], 1),
            )
        _, frames, slots = gaze.ids.shape
        chosen = gaze.chosen.flatten()
        place = chosen.cumsum(0) - 1
        spill = torch.full_like(place, capacity)
        slot = place.new_zeros(capacity + 1)
        slot.scatter_(
            0, torch.where(chosen & (place < capacity), place, spill), torch.arange(len(chosen), device=chosen.device)
        )
        ends = gaze.counts.flatten().cumsum(0)
        filler = torch.arange(capacity, device=chosen.device) >= ends[-1]
        slot = slot[:capacity].masked_fill(filler, 0)
        ids = gaze.ids.flatten()[slot].masked_fill(filler, 0)
        offsets = torch.cat([ends.new_zeros(1), ends]).to(torch.int32)
        return cls(ids, slot // (frames * slots), slot // slots % frames, offsets)

    @classmethod
    def of_whole(cls, gaze: Gaze) -> PackedIds:
        """Pack a gaze of which every slot is chosen, by the caller's word: `chosen` is not read. No host sync."""
        clips, frames, slots = gaze.ids.shape
        place = torch.arange(gaze.ids.numel(), device=gaze.device)
        offsets = slots * torch.arange(clips * frames + 1, device=gaze.device, dtype=torch.int32)
        ids = gaze.ids.flatten().clone()  # not a view of a buffer that the next gaze is loaded into
        return cls(ids, place // (frames * slots), place // slots % frames, offsets, whole=True)


@dataclass(frozen=True, eq=False)
class Layout:
    """Where tokens sit in packed rows, and which rows see which."""

    order: (
        Tensor | None
    )  # (M,) int64: row i is element order[i] of [prefix tokens of all runs, patches]; None: no prefix
    patch_rows: Tensor  # (N,) int64
    prefix_rows: Tensor  # (S, R) int64
    runs: Tensor  # (S + 1,) int32: run s is rows [runs[s], runs[s + 1])
    groups: Tensor  # (G + 1,) int32: what block-causal attention stays inside; equal to `runs` otherwise
    longest_run: int  # upper bounds, known without asking the device
    longest_group: int
    regular: bool = False  # every run has `longest_run` rows and no row is filler
    keys: Tensor | None = None  # (S, Lk) int64 with memory: the key rows of every run, the first `key_counts` of them
    key_counts: Tensor | None = None  # (S,) int64
    key_ages: Tensor | None = None  # (S, Lk) int64: frames since each key was looked at

    @property
    def count(self) -> int:
        """M, with filler."""
        return self.prefix_rows.numel() + len(self.patch_rows)

    @property
    def block_causal(self) -> bool:
        return len(self.groups) != len(self.runs)

    @classmethod
    def of(cls, packed: PackedIds, attention: str, shape: tuple[int, int, int], prefix: int) -> Layout:
        """Lay out packed patches.

        Args:
            attention: "frame", "block_causal" or "joint".
            shape: (B, T, K) of the gaze.
            prefix: R, class and register tokens of a run: a frame's, or a clip's for "joint".
        """
        frames = shape[1]
        patches = packed.offsets[::frames].contiguous() if attention == "joint" else packed.offsets
        runs = patches + prefix * torch.arange(len(patches), device=patches.device, dtype=torch.int32)
        longest = longest_run(attention, shape, prefix)
        groups = runs[::frames] if attention == "block_causal" else runs
        longest_group = longest * frames if attention == "block_causal" else longest
        order, patch_rows, prefix_rows = _interleave(patches.long(), len(packed.ids), prefix)
        regular = packed.whole and attention not in ("block_causal", *REMEMBERS)
        return cls(order, patch_rows, prefix_rows, runs, groups.contiguous(), longest, longest_group, regular)

    def with_keys(
        self, shown: Tensor, scales: int, kept: int = 0, ages: Callable[[Tensor], Tensor] | None = None
    ) -> Layout:
        """The layout of attention with memory: every frame sees its prefix tokens and what shows its cells.

        Args:
            shown: (B * T, cells) int64: among `kept` slots and the packed patches behind them, what shows each cell.
            scales: of the grid.
            kept: slots of a memory, whose keys are put in front of the packed rows'.
            ages: of such rows (S, L), in frames; None where nobody asks for them.
        """
        rows, counts = each_once(shown, scales)
        key_ages = None if ages is None else F.pad(ages(rows), (self.prefix_rows.shape[1], 0))
        if len(self.patch_rows):  # else all that is shown is in the memory
            packed = kept + self.patch_rows[(rows - kept).clamp(min=0, max=len(self.patch_rows) - 1)]
            rows = packed.where(rows >= kept, rows)
        keys = torch.cat([kept + self.prefix_rows, rows], dim=1)
        return replace(self, keys=keys, key_counts=counts + self.prefix_rows.shape[1], key_ages=key_ages)

    def join(self, prefix: Tensor | None, patches: Tensor) -> Tensor:
        """(R, ...) prefix tokens of every run and (N, ...) patches -> (M, ...) packed rows."""
        if self.order is None or prefix is None:
            return patches
        prefix = prefix.expand(len(self.prefix_rows), *prefix.shape).flatten(0, 1)
        return torch.cat([prefix, patches])[self.order]

    def images(self, rows: Tensor) -> Tensor:
        """(M, ...) packed rows -> (S, L, ...) one image a run, zeros behind its last row: what the dense model sees."""
        index, valid = padded_rows(self.runs, self.longest_run, len(rows))
        return rows[index] * valid.view(*valid.shape, *[1] * (rows.ndim - 1))

    def rows(self, images: Tensor, count: int) -> Tensor:
        """The `count` packed rows of images (S, L, ...)."""
        row = torch.arange(count, device=images.device)
        run = torch.bucketize(row, self.runs[1:], right=True).clamp(max=len(self.runs) - 2)
        return images[run, (row - self.runs[run]).clamp(max=images.shape[1] - 1)]

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(M, D) packed rows -> (S, R, D) prefix tokens and (N, D) patches."""
        if self.order is None:
            return rows.new_zeros(*self.prefix_rows.shape, rows.shape[-1]), rows
        return rows[self.prefix_rows], rows[self.patch_rows]


def longest_run(attention: str, shape: tuple[int, int, int], prefix: int) -> int:
    """Rows of a run, with its prefix tokens, if every slot of a (B, T, K) gaze is chosen."""
    _, frames, slots = shape
    return (slots * frames if attention == "joint" else slots) + prefix


def _interleave(offsets: Tensor, patches: int, prefix: int) -> tuple[Tensor | None, Tensor, Tensor]:
    """`order`, `patch_rows` and `prefix_rows` of a layout; filler goes behind the last run."""
    count, device = len(offsets) - 1, offsets.device
    place = torch.arange(patches, device=device)
    prefix_rows = (offsets[:-1] + prefix * torch.arange(count, device=device))[:, None] + torch.arange(
        prefix, device=device
    )
    if prefix == 0:
        return None, place, prefix_rows
    run = torch.bucketize(place, offsets[1:], right=True).clamp(max=count - 1)
    patch_rows = place + prefix * (run + 1)
    order = torch.empty(count * prefix + patches, dtype=torch.int64, device=device)
    order[prefix_rows.flatten()] = torch.arange(count * prefix, device=device)
    order[patch_rows] = place + count * prefix
    return order, patch_rows, prefix_rows


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


def padded_rows(offsets: Tensor, longest: int, count: int) -> tuple[Tensor, Tensor]:
    """Rows (S, L) of every stretch, padded, and which of them are real."""
    if (
        offsets.device.type == "cpu" and not torch.compiler.is_compiling()
    ):  # asking costs nothing; the bound may be far off
        longest = max(1, int(offsets.diff().max()))
    rows = offsets[:-1, None].long() + torch.arange(longest, device=offsets.device)
    return rows.clamp(max=max(0, count - 1)), rows < offsets[1:, None]
