"""Decoding on key/value caches of fixed capacity: the fast way on a CPU, and on a GPU without the fused kernels.

Two things save time over the plain loop. Keys and values are written in place, never copied. And the last group
of a frame, which nothing is read from, is fed together with the next frame's visual tokens: a frame of G groups costs
G passes, not G + 1. Clips of a batch that always spend the same share one cache; others get one each.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from autogaze.decoder import GazeDecoder, rotate, rotation
from autogaze.decoding.choice import Column, choose_group, keep_group, pad_columns
from autogaze.decoding.request import Request

REBASE_AT = 1 << 15  # positions stay below this, far past any clip of 16 frames, so that rotary angles stay exact


class Cache:
    """Keys and values (layers, B, heads, capacity, head_dim) of the frames in the window, oldest first."""

    def __init__(self, decoder: GazeDecoder, batch: int, window: int, tokens_per_frame: int) -> None:
        layer = decoder.model.layers[0].self_attn
        shape = (len(decoder.model.layers), batch, layer.heads, window * tokens_per_frame, layer.q_proj.out_features // layer.heads)
        self.keys, self.values = layer.q_proj.weight.new_empty(shape), layer.q_proj.weight.new_empty(shape)
        self.frequencies, self.window = decoder.model.frequencies, window
        self.frame_lengths: list[int] = []  # tokens of each frame in the window
        self.length = self.position = 0  # tokens held; rotary position of the next token
        self.layers_done = 0

    def open_frame(self) -> None:
        """Make room for a frame by forgetting the oldest when the window is full."""
        if len(self.frame_lengths) == self.window:
            dropped = self.frame_lengths.pop(0)
            kept = self.length - dropped
            for held in (self.keys, self.values):
                held[..., :kept, :] = held[..., dropped : self.length, :].clone()
            self.length = kept
        if self.position >= REBASE_AT:
            cos, sin = rotation(torch.tensor([self.length - self.position], device=self.keys.device), self.frequencies)
            held = self.keys[..., : self.length, :]
            held.copy_(rotate(held, cos, sin))
            self.position = self.length
        self.frame_lengths.append(0)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        new, total = query.shape[2], self.length + query.shape[2]
        self.keys[layer, :, :, self.length : total] = key
        self.values[layer, :, :, self.length : total] = value
        mask = None if new == 1 else torch.ones(new, total, dtype=torch.bool, device=query.device).tril(self.length)
        return F.scaled_dot_product_attention(
            query, self.keys[layer, :, :, :total], self.values[layer, :, :, :total], attn_mask=mask)

    def grow(self, last_frame: int, this_frame: int) -> None:
        """Count tokens that were just written: of the last frame's final group, and of this frame."""
        if last_frame:
            self.frame_lengths[-2] += last_frame
        self.frame_lengths[-1] += this_frame
        self.length += last_frame + this_frame
        self.position += last_frame + this_frame


class UniformDecoding:
    """One clip, or clips that spend the same number of ids in every frame."""

    def __init__(self, decoder: GazeDecoder, batch: int, window: int, visual_tokens: int, budget: int) -> None:
        self.decoder, self.batch = decoder, batch
        # One more frame than the window: a last group may still be written while the next frame comes in.
        self.cache = Cache(decoder, batch, window, visual_tokens + budget + 1)
        self.pending: Tensor | None = None  # (B, n) ids of the last frame's final group, not fed yet
        self.pending_slots: Tensor | None = None  # (n,) where in the group they stood
        self.group_position = self.groups = 0  # of the last frame: rotary position of a group, groups decoded
        self.others_went_on = False  # another clip of the batch decoded more groups in the last frame

    def step(self, visual: Tensor, request: Request) -> Column:
        """Choose the ids of one frame; see `PlainDecoding.step`."""
        decoder, room = self.decoder, int(request.budget[0])
        requirement = None if request.requirement is None else request.requirement[:, 0].to(visual.device)
        taken = torch.zeros(self.batch, decoder.vocabulary - 1, dtype=torch.bool, device=visual.device)
        hidden = self._open(visual)
        self.group_position, self.groups = self.cache.position - decoder.group, 0  # see `plain` on positions
        ids, chosen, losses = [], [], []
        done, first = room == 0, True
        while not done:
            logits, task_loss = decoder.heads(hidden)
            group = choose_group(logits, taken, request.temperature, request.generator)
            left = torch.full((self.batch,), room, device=visual.device)
            kept, ended = keep_group(task_loss, left, requirement, first)
            size = min(room, decoder.group)
            ids.append(group[:, :size])
            chosen.append(kept[:, :size])
            losses.append(task_loss[:, :size])
            done = size == room if requirement is None else bool(ended.all())
            tokens = group[:, :size] if requirement is None else group[kept][None]
            if done:
                self.pending = tokens
                self.pending_slots = kept[0].nonzero().squeeze(1)
            else:
                hidden = self._feed(decoder.model.embed_tokens(tokens), 0, self._group_positions(tokens.shape[1]))
            first, room, self.groups = False, room - size, self.groups + 1
        if not ids:
            empty = taken.new_zeros(self.batch, 0)
            return empty.long(), empty, empty.float()
        return torch.cat(ids, 1), torch.cat(chosen, 1), torch.cat(losses, 1)

    def _group_positions(self, size: int) -> Tensor:
        return torch.arange(self.group_position, self.group_position + size, device=self.cache.keys.device)

    def _open(self, visual: Tensor) -> Tensor:
        """Feed what is left of the last frame and the new frame's visual tokens."""
        pending, slots, self.pending = self.pending, self.pending_slots, None
        if pending is None or slots is None or not pending.shape[1]:
            self.cache.open_frame()
            return self._feed(visual, 0, self._next_positions(visual.shape[1]))
        size = pending.shape[1]
        embedded = self.decoder.model.embed_tokens(pending).to(visual.dtype)
        if len(self.cache.frame_lengths) == self.cache.window:
            # The window is full: the frame that is about to be forgotten must still be seen by the last group.
            self._feed(embedded, 0, self._pending_positions(slots))
            return self._open(visual)
        self.cache.open_frame()
        positions = self._next_positions(size + visual.shape[1])
        positions[:size] = self._pending_positions(slots)
        return self._feed(torch.cat([embedded, visual], dim=1), size, positions)

    def _next_positions(self, size: int) -> Tensor:
        return torch.arange(self.cache.position, self.cache.position + size, device=self.cache.keys.device)

    def _pending_positions(self, slots: Tensor) -> Tensor:
        return self.group_position + slots if self.others_went_on else self._next_positions(len(slots))

    def _feed(self, tokens: Tensor, of_last_frame: int, positions: Tensor) -> Tensor:
        """Append tokens (B, n, width) at rotary positions (n,); the last hidden state (B, width)."""
        hidden = self.decoder.model(tokens, positions[None], self.cache.attend)[:, -1]
        self.cache.grow(of_last_frame, tokens.shape[1] - of_last_frame)
        return hidden


class CachedDecoding:
    """A batch of clips: together where they spend the same, else one by one."""

    def __init__(self, decoder: GazeDecoder, batch: int, window: int, visual_tokens: int, budget: int,
                 uniform: bool) -> None:
        sizes = [batch] if uniform else [1] * batch
        self.parts = [UniformDecoding(decoder, size, window, visual_tokens, budget) for size in sizes]

    def step(self, visual: Tensor, request: Request) -> Column:
        """Choose the ids of one frame; see `PlainDecoding.step`."""
        if len(self.parts) == 1:
            return self.parts[0].step(visual, request)
        columns = [part.step(visual[i : i + 1], request.clip(i)) for i, part in enumerate(self.parts)]
        longest = max(part.groups for part in self.parts)
        for part in self.parts:
            part.others_went_on = request.in_step and part.groups < longest
        return pad_columns(columns, torch.cat)
