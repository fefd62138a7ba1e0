"""Decoding on key/value caches of fixed capacity: the fast way on a CPU, and on a GPU without the fused kernels.

What saves time over the plain loop: keys and values are written in place, never copied. The last group of a frame,
which nothing is read from, is fed together with the next frame's visual tokens: a frame of G groups costs G passes, not
G + 1. The last layer computes the one state that ids are chosen from. Masks are cut out of one that is made once.
Clips of a batch that always spend the same share one cache; others get one each.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from autogaze.decoder import GazeDecoder
from autogaze.decoding import onednn
from autogaze.decoding.choice import Column, choose_group, keep_group, pad_columns
from autogaze.decoding.packed import PackedTrunk, rotate
from autogaze.decoding.request import Request

REBASE_AT = 1 << 15  # positions stay below this, far past any clip of 16 frames, so that rotary angles stay exact


def causal_mask(most: int, capacity: int, like: Tensor) -> Tensor:
    """(most, capacity + most) float: what `most` tokens after a full cache see. Fewer tokens are its first rows; a
    cache that holds less, its last columns."""
    return like.new_full((most, capacity + most), -torch.inf).triu_(capacity + 1)


class Cache:
    """Keys and values, one (B, heads, capacity, head_dim) a layer, of the frames in the window, oldest first.

    Args:
        trunk: what they are of.
        batch: clips.
        window: frames.
        mask: of `causal_mask`; may be shared.
    """

    def __init__(self, trunk: PackedTrunk, batch: int, window: int, mask: Tensor) -> None:
        self.mask, self.window = mask, window
        self.capacity = mask.shape[1] - mask.shape[0]
        # Room to slide: the oldest frame is left behind, and the others are moved back only once in window / 2 frames.
        self.room = self.capacity if mask.is_cuda else self.capacity + self.capacity // 2
        shape = (batch, trunk.heads, self.room, trunk.head_dim)
        self.keys, self.values = ([mask.new_empty(shape) for _ in trunk.layers] for _ in range(2))
        self.onednn = onednn.fits(mask)
        self.frame_lengths: list[int] = []  # tokens of each frame in the window
        self.start = self.length = 0  # where the tokens held begin, and how many they are
        self.position = 0  # rotary position of the next token

    @property
    def full(self) -> bool:
        """Whether the next frame pushes one out of the window."""
        return len(self.frame_lengths) == self.window

    def open_frame(self, trunk: PackedTrunk) -> None:
        """Make room for a frame by forgetting the oldest when the window is full."""
        if self.full:
            dropped = self.frame_lengths.pop(0)
            self.start, self.length = self.start + dropped, self.length - dropped
        if self.start + self.capacity // self.window + self.length > self.room:
            for held in (*self.keys, *self.values):
                held[:, :, : self.length] = held[:, :, self.start : self.start + self.length].clone()
            self.start = 0
        if self.position >= REBASE_AT:
            back = trunk.turns(torch.tensor([self.length - self.position], device=self.mask.device))
            for keys in self.keys:
                held = keys.narrow(2, self.start, self.length)
                held.copy_(rotate(held, back))
            self.position = self.length
        self.frame_lengths.append(0)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        keys, values, new = self.keys[layer], self.values[layer], key.shape[2]
        keys.narrow(2, self.start + self.length, new).copy_(key)
        values.narrow(2, self.start + self.length, new).copy_(value)
        total, asking = self.length + new, query.shape[2]
        keys, values = keys.narrow(2, self.start, total), values.narrow(2, self.start, total)
        if asking == 1:
            return F.scaled_dot_product_attention(query, keys, values)
        mask = self.mask[:asking].narrow(1, self.capacity - self.length, total)
        if self.onednn:
            return onednn.attend(query, keys, values, mask)
        if mask.is_cuda:
            mask = mask.contiguous()  # CUDA's attention kernels read a mask in aligned vectors
        return F.scaled_dot_product_attention(query, keys, values, mask)

    def grow(self, last_frame: int, this_frame: int) -> None:
        """Count tokens that were just written: of the last frame's final group, and of this frame."""
        if last_frame:
            self.frame_lengths[-2] += last_frame
        self.frame_lengths[-1] += this_frame
        self.length += last_frame + this_frame
        self.position += last_frame + this_frame

    def forget(self, kept: Tensor) -> None:
        """Of the last len(kept) tokens, keep those."""
        start, places = self.start + self.length - len(kept), kept.nonzero().squeeze(1)
        for held in (*self.keys, *self.values):
            held[:, :, start : start + len(places)] = held[:, :, start + places]
        self.grow(0, len(places) - len(kept))


@dataclass(frozen=True, eq=False)
class Pending:
    """The last group of a frame, which is fed with the next frame."""

    ids: Tensor  # (B, n) int64
    kept: Tensor | None  # (n,) bool, False where the stop rule made padding; None: all


class UniformDecoding:
    """One clip, or clips that spend the same number of ids in every frame."""

    def __init__(self, decoder: GazeDecoder, trunk: PackedTrunk, batch: int, window: int, mask: Tensor) -> None:
        self.decoder, self.trunk, self.batch = decoder, trunk, batch
        self.cache = Cache(trunk, batch, window, mask)
        self.pending: Pending | None = None
        self.groups = 0  # that the last frame took
        self.group_turns = self._turns(0, 0)  # rotation of a group's tokens in the last frame: see `plain` on positions
        self.others_went_on = False  # another clip of the batch decoded more groups in the last frame

    @torch.inference_mode()  # which spends less time on every operation
    def step(self, visual: Tensor, request: Request) -> Column:
        """Choose the ids of one frame; see `PlainDecoding.step`."""
        decoder, room = self.decoder, int(request.budget[0])
        requirement = None if request.requirement is None else request.requirement[:, 0].to(visual.device)
        taken = torch.zeros(self.batch, decoder.vocabulary - 1, dtype=torch.bool, device=visual.device)
        hidden = self._open(visual)
        self.groups, self.group_turns = 0, self._turns(self.cache.position - decoder.group, decoder.group)
        columns: list[Column] = []
        while room:
            logits, task_loss = decoder.heads(hidden)
            group = choose_group(logits, taken, request.temperature, request.generator)
            left = torch.full((self.batch,), room, device=visual.device)
            kept, ended = keep_group(task_loss, left, requirement, first=not columns)
            size = min(room, decoder.group)
            group, kept = group[:, :size], kept[:, :size]
            columns.append((group, kept, task_loss[:, :size]))
            room, self.groups = room - size, self.groups + 1
            if not room or (requirement is not None and bool(ended.all())):
                self.pending = Pending(group, None if requirement is None else kept[0])
                break
            hidden = self._feed(group, self.group_turns[:size])
        if not columns:
            empty = taken.new_zeros(self.batch, 0)
            return empty.long(), empty, empty.float()
        ids, chosen, losses = (torch.cat(parts, 1) for parts in zip(*columns, strict=True))
        return ids, chosen, losses

    def _open(self, visual: Tensor) -> Tensor:
        """Feed what is left of the last frame and the new frame's visual tokens; the last hidden state (B, width)."""
        ids, turns, seen = self._left_over()
        size = ids.shape[1]
        if size and (seen is not None or self.cache.full):
            # By itself, since the visual tokens must not see the padding in it, or since it must still see the frame
            # that is about to be forgotten.
            self._feed(ids, turns)
            if seen is not None:
                self.cache.forget(seen)
            size = 0
        self.cache.open_frame(self.trunk)
        counted = self._turns(self.cache.position + size, visual.shape[1])
        if not size:
            return self._append(visual, 0, counted)
        embedded = self.decoder.model.embed_tokens(ids).to(visual.dtype)
        return self._append(torch.cat([embedded, visual], dim=1), size, torch.cat([turns, counted]))

    def _left_over(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Ids (B, n) that are not fed yet, their rotation, and which of them are kept unless all are."""
        pending, self.pending = self.pending, None
        if pending is None:
            none = torch.zeros(self.batch, 0, dtype=torch.int64, device=self.cache.mask.device)
            return none, self.group_turns[:0], None
        ids, kept = pending.ids, pending.kept
        if kept is not None and self.others_went_on:  # fed in step with them, with `eos` for padding; see `plain`
            size = int((kept * torch.arange(1, len(kept) + 1, device=kept.device)).amax())
            ids, kept = ids.where(kept, self.decoder.vocabulary - 1)[:, :size], kept[:size]
            return ids, self.group_turns[:size], None if bool(kept.all()) else kept
        ids = ids if kept is None else ids[:, kept]
        return ids, self._turns(self.cache.position, ids.shape[1]), None

    def _turns(self, position: int, count: int) -> Tensor:
        return self.trunk.turns(torch.arange(position, position + count, device=self.cache.mask.device))

    def _feed(self, ids: Tensor, turns: Tensor) -> Tensor:
        """Append ids (B, n) to the newest frame."""
        return self._append(self.decoder.model.embed_tokens(ids), 0, turns)

    def _append(self, tokens: Tensor, of_last_frame: int, turns: Tensor) -> Tensor:
        """Append tokens (B, n, width) with the rotation of their positions; the last hidden state (B, width)."""
        hidden = self.trunk(tokens, turns, self.cache.attend)
        self.cache.grow(of_last_frame, tokens.shape[1] - of_last_frame)
        return hidden


class CachedDecoding:
    """A batch of clips: together where they spend the same, else one by one."""

    def __init__(self, decoder: GazeDecoder, batch: int, window: int, visual_tokens: int, budget: int,
                 uniform: bool) -> None:
        sizes, trunk = [batch] if uniform else [1] * batch, PackedTrunk(decoder)
        mask = causal_mask(visual_tokens + decoder.group, window * (visual_tokens + budget), trunk.norm.weight.detach())
        self.parts = [UniformDecoding(decoder, trunk, size, window, mask) for size in sizes]

    def step(self, visual: Tensor, request: Request) -> Column:
        """Choose the ids of one frame; see `PlainDecoding.step`."""
        if len(self.parts) == 1:
            return self.parts[0].step(visual, request)
        columns = [part.step(visual[i : i + 1], request.clip(i)) for i, part in enumerate(self.parts)]
        longest = max(part.groups for part in self.parts)
        for part in self.parts:
            part.others_went_on = request.in_step and part.groups < longest
        return pad_columns(columns, torch.cat)
