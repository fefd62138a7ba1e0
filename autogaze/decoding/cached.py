"""Decoding on key/value caches of fixed capacity: on a CPU, and on a GPU without the fused kernels.

What saves time over the plain loop: keys and values are written in place, never copied. The last group of a frame,
which nothing is read from, is fed together with the next frame's visual tokens: a frame of G groups costs G passes, not
G + 1. The last layer computes the one state that ids are chosen from. Masks are cut out of one that is made once.
Clips of a batch that always spend the same share one cache; others get one each.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from autogaze.decoding.cache import Cache, causal_mask
from autogaze.decoding.choice import Column, keep_group, pad_columns
from autogaze.decoding.native_pass import NativeCache, NativeTrunk
from autogaze.decoding.packed import PackedTrunk
from autogaze.decoding.request import Request
from autogaze.network.decoder import GazeDecoder
from autogaze.network.residual import FrameResidual


@dataclass(frozen=True, eq=False)
class Pending:
    """The last group of a frame, which is fed with the next frame."""

    ids: Tensor  # (B, n) int64
    kept: Tensor | None  # (n,) bool, False where the stop rule made padding; None: all


class UniformDecoding:
    """One clip, or clips that spend the same number of ids in every frame."""

    def __init__(self, decoder: GazeDecoder, trunk: PackedTrunk | NativeTrunk, cache: Cache, batch: int) -> None:
        self.decoder, self.trunk, self.cache, self.batch = decoder, trunk, cache, batch
        self.pending: Pending | None = None
        self.groups = 0  # that the last frame took
        self.group_turns = self._turns(0, 0)  # rotation of a group's tokens in the last frame: see `plain` on positions
        self.others_went_on = False  # another clip of the batch decoded more groups in the last frame

    @torch.inference_mode()  # which spends less time on every operation
    def step(self, visual: Tensor, request: Request, error: FrameResidual | None = None) -> Column:
        """Choose the ids of one frame; see `PlainDecoding.step`."""
        decoder, room = self.decoder, int(request.budget[0])
        requirement = None if request.requirement is None else request.requirement[:, 0].to(visual.device)
        taken = torch.zeros(self.batch, decoder.vocabulary - 1, dtype=torch.bool, device=visual.device)
        logits, task_loss = self._open(visual)
        self.groups, self.group_turns = 0, self._turns(self.cache.position - decoder.group, decoder.group)
        columns: list[Column] = []
        while room:
            group, task_loss = self.trunk.choose(
                logits, task_loss, taken, request.temperature, request.generator, error
            )
            left = torch.full((self.batch,), room, device=visual.device)
            kept, ended = keep_group(task_loss, left, requirement, first=not columns)
            size = min(room, decoder.group)
            group, kept = group[:, :size], kept[:, :size]
            columns.append((group, kept, task_loss[:, :size]))
            room, self.groups = room - size, self.groups + 1
            if not room or (requirement is not None and bool(ended.all())):
                self.pending = Pending(group, None if requirement is None else kept[0])
                break
            logits, task_loss = self._feed(group, self.group_turns[:size])
        if not columns:
            empty = taken.new_zeros(self.batch, 0)
            return empty.long(), empty, empty.float()
        ids, chosen, losses = (torch.cat(parts, 1) for parts in zip(*columns, strict=True))
        return ids, chosen, losses

    def _open(self, visual: Tensor) -> tuple[Tensor, Tensor]:
        """Feed what is left of the last frame and the new frame's visual tokens; what the heads say."""
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
            none = torch.zeros(self.batch, 0, dtype=torch.int64, device=self.cache.device)
            return none, self.group_turns[:0], None
        ids, kept = pending.ids, pending.kept
        if kept is not None and self.others_went_on:  # fed in step with them, with `eos` for padding; see `plain`
            size = int((kept * torch.arange(1, len(kept) + 1, device=kept.device)).amax())
            ids, kept = ids.where(kept, self.decoder.vocabulary - 1)[:, :size], kept[:size]
            return ids, self.group_turns[:size], None if bool(kept.all()) else kept
        ids = ids if kept is None else ids[:, kept]
        return ids, self._turns(self.cache.position, ids.shape[1]), None

    def _turns(self, position: int, count: int) -> Tensor:
        return self.trunk.turns(torch.arange(position, position + count, device=self.cache.device))

    def _feed(self, ids: Tensor, turns: Tensor) -> tuple[Tensor, Tensor]:
        """Append ids (B, n) to the newest frame."""
        return self._append(self.decoder.model.embed_tokens(ids), 0, turns)

    def _append(self, tokens: Tensor, of_last_frame: int, turns: Tensor) -> tuple[Tensor, Tensor]:
        """Append tokens (B, n, width) with the rotation of their positions; logits and losses after the last."""
        scores = self.trunk.scores(tokens, turns, self.cache)
        self.cache.grow(of_last_frame, tokens.shape[1] - of_last_frame)
        return scores


class CachedDecoding:
    """A batch of clips: together where they spend the same, else one by one."""

    def __init__(
        self,
        decoder: GazeDecoder,
        batch: int,
        window: int,
        visual_tokens: int,
        budget: int,
        uniform: bool,
        native: bool = False,
    ) -> None:
        sizes, capacity = [batch] if uniform else [1] * batch, window * (visual_tokens + budget)
        like = decoder.model.norm.weight.detach()
        if native:
            trunk = NativeTrunk(decoder)
            caches = [NativeCache(trunk, size, window, capacity, like) for size in sizes]
        else:
            trunk = PackedTrunk(decoder)
            mask = causal_mask(visual_tokens + decoder.group, capacity, like)
            caches = [Cache(trunk, size, window, capacity, like, mask) for size in sizes]
        self.parts = [UniformDecoding(decoder, trunk, cache, size) for cache, size in zip(caches, sizes, strict=True)]

    def step(self, visual: Tensor, request: Request, error: FrameResidual | None = None) -> Column:
        """Choose the ids of one frame; see `PlainDecoding.step`."""
        if len(self.parts) == 1:
            return self.parts[0].step(visual, request, error)
        own = [None if error is None else error.clip(i) for i in range(len(self.parts))]
        columns = [part.step(visual[i : i + 1], request.clip(i), own[i]) for i, part in enumerate(self.parts)]
        longest = max(part.groups for part in self.parts)
        for part in self.parts:
            part.others_went_on = request.in_step and part.groups < longest
        return pad_columns(columns, torch.cat)
