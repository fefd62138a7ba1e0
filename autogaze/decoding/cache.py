"""The cache of keys and values: of fixed capacity, sliding when it is full."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from autogaze.decoding import onednn
from autogaze.decoding.packed import Trunk, rotate

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
        capacity: tokens of a window.
        like: a tensor of their dtype and device.
        mask: of `causal_mask`, for `attend`; may be shared.
    """

    def __init__(
        self, trunk: Trunk, batch: int, window: int, capacity: int, like: Tensor, mask: Tensor | None = None
    ) -> None:
        self.mask, self.window, self.capacity, self.device = mask, window, capacity, like.device
        # Room to slide: the oldest frame is left behind, and the others are moved back only once in window / 2 frames.
        self.room = capacity if like.is_cuda else capacity + capacity // 2
        shape = (batch, trunk.heads, self.room, trunk.head_dim)
        self.keys, self.values = ([like.new_empty(shape) for _ in range(trunk.layer_count)] for _ in range(2))
        self.onednn = onednn.fits(like)
        self.frame_lengths: list[int] = []  # tokens of each frame in the window
        self.start = self.length = 0  # where the tokens held begin, and how many they are
        self.position = 0  # rotary position of the next token

    @property
    def full(self) -> bool:
        """Whether the next frame pushes one out of the window."""
        return len(self.frame_lengths) == self.window

    def open_frame(self, trunk: Trunk) -> None:
        """Make room for a frame by forgetting the oldest when the window is full."""
        if self.full:
            dropped = self.frame_lengths.pop(0)
            self.start, self.length = self.start + dropped, self.length - dropped
        if self.start + self.capacity // self.window + self.length > self.room:
            self.slide()
            self.start = 0
        if self.position >= REBASE_AT:
            back = trunk.turns(torch.tensor([self.length - self.position], device=self.device))
            self.turn(back)
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
        assert self.mask is not None
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
        self.move(start, start + places)
        self.grow(0, len(places) - len(kept))

    def slide(self) -> None:
        """Move all tokens held to the front."""
        for held in (*self.keys, *self.values):
            held[:, :, : self.length] = held[:, :, self.start : self.start + self.length].clone()

    def move(self, to: int, sources: Tensor) -> None:
        """Move tokens (n,) to `to` and the places behind it."""
        for held in (*self.keys, *self.values):
            held[:, :, to : to + len(sources)] = held[:, :, sources]

    def turn(self, by: Tensor) -> None:
        """Rotate all keys held."""
        for keys in self.keys:
            held = keys.narrow(2, self.start, self.length)
            held.copy_(rotate(held, by))
