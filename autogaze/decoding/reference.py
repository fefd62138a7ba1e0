"""The reference in PyTorch: on every device and in every dtype, and what the other back ends must equal.

`decode_frame` is the loop over a frame: feed what `autogaze.decoding.sequence` says, read the heads, choose a group,
until the budget is spent or the stop rule is met. `Memory` is the decoder with the keys and values of the window,
written in place. Clips of a batch that always spend the same share a memory; others have one each. The C++ back end
runs the same loop on a memory of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from autogaze.decoding.choice import Slots, choose_group, join_slots, keep_group
from autogaze.decoding.request import Request
from autogaze.decoding.sequence import position_in_frame
from autogaze.network.decoder import DecoderLayer, GazeDecoder, rotate, rotation
from autogaze.network.encoder import EncoderCache, FrameTokens
from autogaze.network.network import GazeNetwork
from autogaze.network.residual import FrameResidual, ResidualMap

if TYPE_CHECKING:
    from autogaze.decoding.cpu.residual import NativeResidualMap

REBASE_AT = 1 << 15  # positions stay below this, far past any clip of 16 frames, so that rotary angles stay exact


def why_not(model: GazeNetwork, asked: bool) -> str:
    """The reason why this back end cannot decode for a model: there is none."""
    return ""


def means(model: GazeNetwork) -> str:
    """A line on how this back end decodes, for `autogaze info`."""
    return "PyTorch's own operations"


def begin(model: GazeNetwork, request: Request, frames: int, stream: bool) -> LoopDecoding:
    """See `backends.begin`."""
    return LoopDecoding(model, request, frames, partial(Memory, model.gaze_decoder), model.residual_map)


class Memory:
    """The decoder, with keys and values of the frames in the window, oldest first: (B, heads, room, head_dim) a layer.

    Args:
        decoder: whose keys and values these are.
        batch: clips.
        window: frames.
        capacity: tokens of a window.
    """

    def __init__(self, decoder: GazeDecoder, batch: int, window: int, capacity: int) -> None:
        self.decoder, self.batch, self.window, self.capacity = decoder, batch, window, capacity
        attention = cast(DecoderLayer, decoder.model.layers[0]).self_attn
        self.heads, self.head_dim = attention.heads, attention.q_proj.out_features // attention.heads
        self.device = decoder.model.norm.weight.device
        # Room to slide: the oldest frame is left behind, and the others are moved back only once in window / 2 frames.
        self.room = capacity + capacity // 2
        self.keys, self.values = self.allocate()
        self.frame_lengths: list[int] = []  # tokens of each frame in the window
        self.start = self.length = 0  # where the tokens held begin, and how many they are
        self.position = 0  # rotary position of the next token
        self.pending = torch.zeros(batch, 0, dtype=torch.int64, device=self.device)  # last group, not fed yet

    def allocate(self) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values of every layer."""
        like, shape = self.decoder.model.norm.weight, (self.batch, self.heads, self.room, self.head_dim)
        keys, values = ([like.detach().new_empty(shape) for _ in self.decoder.model.layers] for _ in range(2))
        return keys, values

    def open_frame(self, visual: Tensor) -> tuple[Tensor, Tensor]:
        """Feed the last frame's last group and a new frame's visual tokens (B, N, width); see `append`."""
        tokens, self.pending = self.decoder.model.embed_tokens(self.pending).to(visual.dtype), self.pending[:, :0]
        size = tokens.shape[1]
        if len(self.frame_lengths) == self.window:  # the oldest frame goes, which the last group must still see
            if size:
                self.append(tokens, self.counted(size))
                tokens, size = tokens[:, :0], 0
            dropped = self.frame_lengths.pop(0)
            self.start, self.length = self.start + dropped, self.length - dropped
        if self.start + self.capacity // self.window + self.length > self.room:
            self.slide()
            self.start = 0
        if self.position >= REBASE_AT:
            self.turn(self.length - self.position)
            self.position = self.length
        self.frame_lengths.append(0)
        return self.append(torch.cat([tokens, visual], dim=1), self.counted(size + visual.shape[1]), size)

    def counted(self, tokens: int) -> Tensor:
        """Rotary positions of the next tokens."""
        return torch.arange(self.position, self.position + tokens, device=self.device)

    def append(self, tokens: Tensor, positions: Tensor, of_last_frame: int = 0) -> tuple[Tensor, Tensor]:
        """Feed tokens (B, n, width) at rotary positions (n,), the first `of_last_frame` of which end the frame before.

        Returns:
            logits (B, K, vocabulary) and predicted losses (B, K), float32, after the last token.
        """
        scores = self.scores(tokens, positions)
        count = tokens.shape[1]
        if of_last_frame:
            self.frame_lengths[-2] += of_last_frame
        self.frame_lengths[-1] += count - of_last_frame
        self.length, self.position = self.length + count, self.position + count
        return scores

    def scores(self, tokens: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """See `append`; keys and values of the tokens are written behind those held, which are not counted yet."""
        return self.decoder.heads(self.decoder.model(tokens, positions[None], self.attend)[:, -1])

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        keys, values, new = self.keys[layer], self.values[layer], key.shape[2]
        total, first = self.length + new, self.start + self.length
        keys.narrow(2, first, new).copy_(key)
        values.narrow(2, first, new).copy_(value)
        causal = torch.ones(new, total, dtype=torch.bool, device=query.device).tril(self.length)
        keys, values = keys.narrow(2, self.start, total), values.narrow(2, self.start, total)
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=causal)

    def choose(
        self, logits: Tensor, task_loss: Tensor, taken: Tensor, request: Request, error: FrameResidual | None
    ) -> tuple[Tensor, Tensor]:
        """`choose_group` of what `append` returned."""
        return choose_group(logits, task_loss, taken, request.temperature, request.generator, error)

    def slide(self) -> None:
        """Move all tokens held to the front."""
        for held in (*self.keys, *self.values):
            held[:, :, : self.length] = held[:, :, self.start : self.start + self.length].clone()

    def turn(self, by: int) -> None:
        """Rotate all keys held by a number of positions."""
        cos, sin = rotation(torch.tensor([by], device=self.device), self.decoder.model.frequencies)
        for keys in self.keys:
            held = keys.narrow(2, self.start, self.length)
            held.copy_(rotate(held, cos, sin))


@torch.inference_mode()  # which spends less time on every operation
def decode_frame(memory: Memory, visual: Tensor, request: Request, error: FrameResidual | None) -> Slots:
    """Choose the ids of the next frame of one clip, or of clips that spend the same number of ids in every frame.

    Args:
        memory: of these clips.
        visual: (B, N, width) visual tokens of the frame.
        request: of this frame, (B, 1).
        error: what is wrong with the frame, for models that know it.

    Returns:
        ids (B, K) int64, chosen (B, K) bool, predicted loss before each id (B, K) float32; K is the number of slots
        decoded.
    """
    decoder, group, room = memory.decoder, memory.decoder.group, int(request.budget[0])
    requirement = None if request.requirement is None else request.requirement[:, 0].to(memory.device)
    taken = torch.zeros(memory.batch, decoder.vocabulary - 1, dtype=torch.bool, device=memory.device)
    if request.allowed is not None:
        taken |= ~request.allowed.to(memory.device)
    logits, task_loss = memory.open_frame(visual)
    inside = position_in_frame(memory.position - 1, torch.arange(group, device=memory.device), group)
    slots: list[Slots] = []
    while room:
        ids, task_loss = memory.choose(logits, task_loss, taken, request, error)
        left = torch.full((memory.batch,), room, device=memory.device)
        kept, ended = keep_group(task_loss, left, requirement, first=not slots)
        size = min(room, group)
        ids, kept, room = ids[:, :size], kept[:, :size], room - size
        slots.append((ids, kept, task_loss[:, :size]))
        if not room or (requirement is not None and bool(ended.all())):
            memory.pending = ids if requirement is None else ids[:, kept[0]]
            break
        logits, task_loss = memory.append(decoder.model.embed_tokens(ids), inside)
    if not slots:
        empty = taken.new_zeros(memory.batch, 0)
        return empty.long(), empty, empty.float()
    ids, chosen, losses = (torch.cat(parts, 1) for parts in zip(*slots, strict=True))
    return ids, chosen, losses


class LoopDecoding:
    """A batch of clips, together where they spend the same, else one by one; see `backends.Decoding`.

    Args:
        model, request, frames: as of `begin`.
        memory: makes a `Memory` of (batch, window, capacity).
        rule: for models with a residual map, what keeps up the canvas of each clip.
    """

    def __init__(
        self,
        model: GazeNetwork,
        request: Request,
        frames: int,
        memory: Callable[[int, int, int], Memory],
        rule: ResidualMap | NativeResidualMap | None,
    ) -> None:
        batch, window = len(request.budget), min(model.config.max_num_frames, frames)
        budget = int(request.budget.max()) if request.budget.numel() else 0
        sizes = [batch] if request.uniform else [1] * batch
        capacity = window * (model.visual_tokens + budget)
        self.memories = [memory(size, window, capacity) for size in sizes]
        self.model, self.rule = model, rule
        self.encoder_cache: EncoderCache | None = None
        self.canvas: Tensor | None = None

    def decode(self, video: Tensor, request: Request) -> Slots:
        """See `backends.Decoding`."""
        tokens, self.encoder_cache = self.model.embed(video.to(self.model.device), self.encoder_cache)
        slots = [self._frame(tokens.frame(t), request.frames(t, t + 1)) for t in range(video.shape[1])]
        return join_slots(slots, partial(torch.stack, dim=1))

    def _frame(self, tokens: FrameTokens, request: Request) -> Slots:
        rule, grey = self.rule, tokens.grey
        if rule is None or grey is None:
            return self._choose(tokens.visual, request, None)
        canvas = rule.open(grey) if self.canvas is None else self.canvas
        slots = self._choose(tokens.visual, request, rule.begin(grey, canvas, tokens.visual))
        self.canvas = rule.look(canvas, grey, slots[0], slots[1])
        return slots

    def _choose(self, visual: Tensor, request: Request, error: FrameResidual | None) -> Slots:
        if len(self.memories) == 1:
            return decode_frame(self.memories[0], visual, request, error)
        own = [None if error is None else error.clip(i) for i in range(len(visual))]
        slots = [
            decode_frame(memory, visual[i : i + 1], request.clip(i), own[i]) for i, memory in enumerate(self.memories)
        ]
        return join_slots(slots, torch.cat)
