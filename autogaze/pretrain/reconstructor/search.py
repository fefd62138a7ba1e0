"""Frame by frame: the loss of many candidate gazes of one frame, with everything before it fixed.

    memory = start(reconstructor, clips)
    for t in range(frames):
        sight = look(reconstructor, memory, video[:, t])
        trial = attempt(reconstructor, sight, masks)          # masks (B, M, P): M candidates a clip
        memory = commit(reconstructor, sight, masks[:, best])

gives the frames and losses of `Reconstructor.reconstruct` on the committed masks; what is remembered of earlier
frames (patches, ages, keys and values of the attention in time) is computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autogaze.pretrain.reconstructor.network import Block, Reconstructor, Rotation
from autogaze.pretrain.reconstructor.paste import NEVER

Entries = tuple[tuple[Tensor, Tensor], ...]  # keys and values of each block


@dataclass(frozen=True, eq=False)
class Memory:
    """Memory of what a batch of clips has shown up to a frame."""

    frame: int  # index of the next frame
    images: tuple[Tensor, ...]  # each scale (B, 3, rows * patch, columns * patch), patches as last seen
    age: Tensor  # (B, P) float, frames since each patch was seen, counted from the last frame
    past: Entries  # each block's keys and values (B, cells, heads, frame, width / heads)


@dataclass(frozen=True, eq=False)
class Sight:
    """One frame to be searched, with what is remembered."""

    target: Tensor  # (B, 3, H, W)
    memory: Memory
    cut: tuple[Tensor, ...]  # the frame at each scale, as `Memory.images`
    new_small: tuple[Tensor, ...]  # each scale on its small canvas, if all of it were looked at
    old_small: tuple[Tensor, ...]  # what is remembered instead
    new_full: tuple[Tensor, ...]  # (B, 3, H, W)
    old_full: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, clips: Tensor) -> Sight:
        """Some clips of the batch, by index tensor."""

        def some(parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(part[clips] for part in parts)

        memory = Memory(
            self.memory.frame,
            some(self.memory.images),
            self.memory.age[clips],
            tuple((k[clips], v[clips]) for k, v in self.memory.past),
        )
        return Sight(
            self.target[clips],
            memory,
            some(self.cut),
            some(self.new_small),
            some(self.old_small),
            some(self.new_full),
            some(self.old_full),
        )


@dataclass(frozen=True, eq=False)
class Trial:
    """Reconstructions of candidate gazes."""

    frames: Tensor  # (B, M, 3, H, W) float32
    loss: Tensor  # (B, M) float32
    entries: Entries  # each block's new keys and values (B, cells, heads, M, width / heads)


def start(model: Reconstructor, clips: int) -> Memory:
    """The memory before the first frame."""
    device, grid = model.place.device, model.grid
    images = tuple(
        torch.zeros(clips, 3, rows * grid.patch_size, columns * grid.patch_size, device=device)
        for rows, columns in grid.sides
    )
    return Memory(0, images, torch.full((clips, grid.patches_per_frame), NEVER, device=device), ())


def look(model: Reconstructor, memory: Memory, frame: Tensor) -> Sight:
    """Prepare a frame (B, 3, H, W) for candidates."""
    paint, cut = model.painter.paint, tuple(model.painter.cut(frame))
    return Sight(
        frame,
        memory,
        cut,
        tuple(paint(k, image, "small") for k, image in enumerate(cut)),
        tuple(paint(k, image, "small") for k, image in enumerate(memory.images)),
        tuple(paint(k, image) for k, image in enumerate(cut)),
        tuple(paint(k, image) for k, image in enumerate(memory.images)),
    )


def attempt(model: Reconstructor, sight: Sight, masks: Tensor) -> Trial:
    """Rebuild the frame from each candidate.

    Args:
        model: the reconstructor.
        sight: the frame.
        masks: (B, M, patches_per_frame) bool, what of this frame each candidate looks at.
    """
    age = model.painter.split(torch.where(masks, 0.0, sight.memory.age[:, None] + 1))
    x, entries = _tokens(model, sight, age)
    at = [model.painter.spread(k, part) for k, part in enumerate(age)]
    frames = model.render(x, _shown(sight.new_full, sight.old_full, at), at)
    return Trial(frames, model.objective(frames, sight.target[:, None].expand_as(frames)), entries)


def commit(model: Reconstructor, sight: Sight, mask: Tensor) -> Memory:
    """Look at `mask` (B, patches_per_frame) of the frame and go on to the next."""
    old, patch = sight.memory, model.config.patch_size
    age = torch.where(mask, 0.0, old.age + 1)
    _, entries = _tokens(model, sight, model.painter.split(age[:, None]))
    images = tuple(
        new.where(part.unflatten(-1, sides).repeat_interleave(patch, -1).repeat_interleave(patch, -2)[:, None], before)
        for new, before, part, sides in zip(
            sight.cut, old.images, model.painter.split(mask), model.grid.sides, strict=True
        )
    )
    past = tuple(
        (torch.cat([old.past[n][0], key], -2), torch.cat([old.past[n][1], value], -2)) if old.past else (key, value)
        for n, (key, value) in enumerate(entries)
    )
    return Memory(old.frame + 1, images, age, past)


def _tokens(model: Reconstructor, sight: Sight, age: Sequence[Tensor]) -> tuple[Tensor, Entries]:
    """After the blocks (B, M, cells, width), and what they add to the memory; age of each scale (B, M, patches)."""
    at = [model.painter.spread(k, part, "small") for k, part in enumerate(age)]
    x = model.tokens(_shown(sight.new_small, sight.old_small, at), at)
    rotation = model.rotation(torch.full((1,), sight.memory.frame, device=x.device))
    entries = []
    for number, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        x, entry = _candidates(block, x, sight.memory.past[number] if sight.memory.past else None, rotation)
        entries.append(entry)
    return x, tuple(entries)


def _shown(new: Sequence[Tensor], old: Sequence[Tensor], age: Sequence[Tensor]) -> list[Tensor]:
    """Each scale of candidates (B, M, 3, height, width): what is looked at now has age 0 (B, M, height, width)."""
    return [
        now[:, None].where((at == 0)[:, :, None], before[:, None])
        for now, before, at in zip(new, old, age, strict=True)
    ]


def _candidates(
    block: Block, x: Tensor, past: tuple[Tensor, Tensor] | None, rotation: Rotation
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """`Block` on candidates (B, M, cells, width) of one frame: each sees the past and itself, not the others."""
    x = x + block.space(x.flatten(0, 1)).view_as(x)
    query, key, value = block.time.heads_of(x.transpose(1, 2), rotation)  # (B, cells, heads, M, width / heads)
    logits = (query * key).sum(-1, keepdim=True)
    if past is not None:
        logits = torch.cat([query @ past[0].mT, logits], dim=-1)
    weight = (logits.float() / query.shape[-1] ** 0.5).softmax(-1).to(value.dtype)
    seen = weight[..., -1:] * value
    if past is not None:
        seen = seen + weight[..., :-1] @ past[1]
    x = x + block.time.merge(seen).transpose(1, 2)
    return x + block.mlp(x), (key, value)
