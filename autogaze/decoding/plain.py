"""The plain loop: one clip at a time, exactly as the paper says it. The definition that every faster way must equal.

The sequence of a clip is [visual tokens][ids] frame after frame, without padding. Keys and values of the last
`window` frames are kept in one list a frame; older frames are forgotten, which a clip of up to `window` frames
never notices (published models allow 16 frames and stop there).

Rotary positions count the tokens of the sequence, with one exception that published models were trained with: a group
that is fed while its frame is being decoded takes the positions of the frame's last K visual tokens. The last
group of a frame, which is fed with the next frame, is counted like any other token. Published models decode a batch in
step, so a clip that ends a frame early has its last group fed while the others go on (`Request.in_step`): the ids that
the stop rule left out of that group then stand in it as `eos`, seen by the group's later ids and by nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from autogaze.decoding.choice import Column, choose_group, keep_group, pad_columns
from autogaze.decoding.request import Request
from autogaze.network.decoder import GazeDecoder
from autogaze.network.residual import FrameResidual


@dataclass(frozen=True, eq=False)
class Group:
    """One group of a clip."""

    ids: Tensor  # (n,) int64
    kept: Tensor  # (n,) bool, False where the stop rule made padding


class PlainMemory:
    """One clip: keys and values (1, heads, N, head_dim) of every frame in the window, for every layer."""

    def __init__(self, layers: int, window: int) -> None:
        self.layers, self.window = layers, window
        self.frames: list[list[tuple[Tensor, Tensor] | None]] = []
        self.position = 0  # tokens so far
        self.pending: Group | None = None  # the last frame's final group, fed when the next frame comes

    def open_frame(self) -> None:
        self.frames.append([None] * self.layers)
        del self.frames[: -self.window]

    def forget(self, kept: Tensor) -> None:
        """Of the last len(kept) tokens, keep those."""
        for layer, pair in enumerate(self.frames[-1]):
            assert pair is not None
            before = pair[0].shape[2] - len(kept)
            index = torch.cat([torch.arange(before, device=kept.device), before + kept.nonzero().squeeze(1)])
            self.frames[-1][layer] = (pair[0][:, :, index], pair[1][:, :, index])
        self.position -= int((~kept).sum())

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        held = self.frames[-1][layer]
        if held is not None:
            key, value = torch.cat([held[0], key], dim=2), torch.cat([held[1], value], dim=2)
        self.frames[-1][layer] = (key, value)
        pairs = [frame[layer] for frame in self.frames]
        keys = torch.cat([pair[0] for pair in pairs if pair], dim=2)
        values = torch.cat([pair[1] for pair in pairs if pair], dim=2)
        new, total = query.shape[2], keys.shape[2]
        causal = torch.ones(new, total, dtype=torch.bool, device=query.device).tril(total - new)
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=causal)


class PlainFrame:
    """One clip while it decodes one frame."""

    def __init__(
        self, decoder: GazeDecoder, memory: PlainMemory, visual: Tensor, request: Request, error: FrameResidual | None
    ) -> None:
        self.decoder, self.memory, self.request, self.error = decoder, memory, request, error
        self.room = int(request.budget[0])
        self.requirement = None if request.requirement is None else request.requirement[0].to(visual.device)
        self.taken = torch.zeros(1, decoder.vocabulary - 1, dtype=torch.bool, device=visual.device)
        if memory.pending is not None and bool(memory.pending.kept.any()):
            ids = memory.pending.ids[memory.pending.kept]
            self._append(decoder.model.embed_tokens(ids), self._count(len(ids)))
        memory.pending = None
        memory.open_frame()
        self.hidden = self._append(visual, self._count(len(visual)))
        self.group_position = memory.position - decoder.group
        self.done = self.room == 0
        self.columns: list[Column] = []

    def choose(self) -> Group:
        """Take the next group."""
        logits, task_loss = self.decoder.heads(self.hidden)
        group, task_loss = choose_group(
            logits, task_loss, self.taken, self.request.temperature, self.request.generator, self.error
        )
        room = torch.tensor([self.room], device=group.device)
        kept, ended = keep_group(task_loss, room, self.requirement, first=not self.columns)
        size = min(self.room, self.decoder.group)
        self.columns.append((group[0, :size], kept[0, :size], task_loss[0, :size]))
        self.room, self.done = self.room - size, bool(ended)
        return Group(group[0, :size], kept[0, :size])

    def feed(self, group: Group) -> None:
        """Append a group while the frame is being decoded, at the positions of its last visual tokens."""
        ids = group.ids.where(group.kept, self.decoder.vocabulary - 1)
        positions = self.group_position + torch.arange(len(ids), device=ids.device)
        self.hidden = self._append(self.decoder.model.embed_tokens(ids), positions)
        self.memory.forget(group.kept)

    def _count(self, tokens: int) -> Tensor:
        """Rotary positions of tokens that are counted."""
        return torch.arange(self.memory.position, self.memory.position + tokens, device=self.taken.device)

    def _append(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Append tokens (N, width) to the sequence and return the last hidden state (1, width)."""
        self.memory.position += len(tokens)
        return self.decoder.model(tokens[None], positions[None], self.memory.attend)[:, -1]

    def column(self) -> Column:
        """Ids, chosen and predicted losses of all groups."""
        if not self.columns:
            return self.taken.new_zeros(0, dtype=torch.int64), self.taken.new_zeros(0), self.hidden.new_zeros(0).float()
        ids, chosen, loss = (torch.cat(parts) for parts in zip(*self.columns, strict=True))
        return ids, chosen, loss


class PlainDecoding:
    """Decodes a batch clip by clip; `step` takes the visual tokens of one more frame."""

    def __init__(self, decoder: GazeDecoder, batch: int, window: int) -> None:
        self.decoder = decoder
        self.memories = [PlainMemory(len(decoder.model.layers), window) for _ in range(batch)]

    def step(self, visual: Tensor, request: Request, error: FrameResidual | None = None) -> Column:
        """Choose the ids of one frame.

        Args:
            visual: (B, N, width) visual tokens of the frame.
            request: of this frame, (B, 1).
            error: what is wrong with the frame, for models that know it.

        Returns:
            ids (B, K) int64, chosen (B, K) bool, predicted loss before each id (B, K) float32; K is the longest
            clip's count of slots.
        """
        frames = [
            PlainFrame(self.decoder, memory, visual[i], request.clip(i), None if error is None else error.clip(i))
            for i, memory in enumerate(self.memories)
        ]
        while not all(frame.done for frame in frames):
            groups = [(frame, frame.choose()) for frame in frames if not frame.done]
            others_go_on = request.in_step and not all(frame.done for frame in frames)
            for frame, group in groups:
                if frame.done and not others_go_on:
                    frame.memory.pending = group
                else:
                    frame.feed(group)
        return pad_columns([frame.column() for frame in frames], torch.stack)
