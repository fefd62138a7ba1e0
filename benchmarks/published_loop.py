"""The published way of decoding, as a plain loop: the other side of speed comparisons, and a check of what is chosen.

For every frame the embeddings of the whole sequence so far are put together again, of which those that are not in the
cache are fed. Every step makes a mask over the whole cache, appends to the cache by concatenation, copies all of it,
and takes K ids head by head, asking the device after each. A batch is decoded in step: a clip that is done goes on
with `eos` until the others are. Within a frame every fed token counts as valid, at the positions of the frame's last
K visual tokens; for the frames that follow, `eos` is masked and valid tokens are counted.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor
from torch.nn import functional as F

from autogaze.core.gaze import Gaze
from autogaze.model import AutoGaze
from autogaze.network.residual import FrameResidual


class GrowingCache:
    """Keys and values of every layer, (B, heads, N, head_dim), with the mask of what may be attended to."""

    def __init__(self, layers: int) -> None:
        self.pairs: list[tuple[Tensor, Tensor] | None] = [None] * layers
        self.mask: Tensor | None = None  # (B, 1, new, N) float, of the pass under way

    @property
    def length(self) -> int:
        return 0 if self.pairs[0] is None else self.pairs[0][0].shape[2]

    def look(self, valid: Tensor, new: int) -> None:
        """Make the mask of a pass of `new` tokens that ends a sequence of which `valid` (B, N) says what counts.

        In the passes over it that transformers 4.51, which the published code was recorded with, makes.
        """
        total, never = valid.shape[1], torch.finfo(torch.float32).min
        mask = torch.full((new, total), never)
        if new > 1:
            mask = torch.triu(mask, diagonal=1)
        mask *= torch.arange(total) > torch.arange(total - new, total)[:, None]
        mask = mask[None, None].expand(len(valid), 1, -1, -1).clone()
        padding = (mask + valid.to(torch.int64)[:, None, None]) == 0
        self.mask = mask.masked_fill(padding, never)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        held = self.pairs[layer]
        if held is not None:
            key, value = torch.cat([held[0], key], dim=2), torch.cat([held[1], value], dim=2)
        self.pairs[layer] = (key, value)
        return F.scaled_dot_product_attention(query.contiguous(), key, value, attn_mask=self.mask)


@torch.no_grad()
def generate_published(
    model: AutoGaze, video: Tensor, gazing_ratio: float = 1.0, task_loss_requirement: float | None = None
) -> Gaze:
    """The gaze of `AutoGaze.generate`, made the published way; on the CPU, in float32.

    Args:
        video: (B, T, 3, H, W) float.
        gazing_ratio: largest share of a frame's patches.
        task_loss_requirement: predicted loss at which a frame may stop.
    """
    tokens, rule = model.embed(video)[0], model.residual_map  # the latter is ours
    grey = video if tokens.grey is None else tokens.grey
    decoder, budget, eos = model.gaze_decoder, model.grid.budget(gazing_ratio), model.grid.patches_per_frame
    cache = GrowingCache(len(decoder.model.layers))
    embeds: list[Tensor] = []
    valid: list[Tensor] = []
    frames: list[Tensor] = []
    canvas = None if rule is None else rule.open(grey[:, 0])
    for t in range(video.shape[1]):
        visual = tokens.visual[:, t]
        embeds.append(visual)
        valid.append(torch.ones(visual.shape[:2], dtype=torch.bool))
        error = None if rule is None or canvas is None else rule.begin(grey[:, t], canvas, visual)
        ids, cache = _decode_frame(
            model, torch.cat(embeds, 1), torch.cat(valid, 1), cache, budget, task_loss_requirement, error
        )
        embeds.append(decoder.model.embed_tokens(ids))
        valid.append(ids != eos)
        frames.append(ids)
        if rule is not None and canvas is not None:
            canvas = rule.look(canvas, grey[:, t], ids.where(ids != eos, 0), ids != eos)
    slots = max(ids.shape[1] for ids in frames)
    padded = torch.stack([F.pad(ids, (0, slots - ids.shape[1]), value=eos) for ids in frames], dim=1)
    return Gaze(padded.where(padded != eos, 0), padded != eos, model.grid)


def _decode_frame(
    model: AutoGaze,
    embeds: Tensor,
    valid: Tensor,
    cache: GrowingCache,
    budget: int,
    requirement: float | None,
    error: FrameResidual | None,
) -> tuple[Tensor, GrowingCache]:
    """Ids (B, n) of a frame, `eos` where padded, and the cache without the last group."""
    decoder, eos, kept = model.gaze_decoder, model.grid.patches_per_frame, cache
    tokens = embeds[:, cache.length :]
    positions = (valid.long().cumsum(1) - 1)[:, cache.length :]
    ids = torch.zeros(len(embeds), 0, dtype=torch.int64)
    unfinished = torch.ones(len(embeds), dtype=torch.bool)
    while bool(unfinished.any()):
        cache.look(valid, tokens.shape[1])
        logits, losses = decoder.heads(decoder.model(tokens, positions[:, -tokens.shape[1] :], cache.attend)[:, -1])
        kept = deepcopy(cache)
        group, ended = _choose(logits.clone(), losses.clone(), ids, unfinished, budget, requirement, eos, error)
        ids = torch.cat([ids, group], dim=1)
        unfinished &= ~ended & (ids.shape[1] < budget)
        tokens = decoder.model.embed_tokens(group)
        valid = torch.cat([valid, valid.new_ones(group.shape)], dim=1)
    return ids, kept


def _choose(
    logits: Tensor,
    losses: Tensor,
    ids: Tensor,
    unfinished: Tensor,
    budget: int,
    requirement: float | None,
    eos: int,
    error: FrameResidual | None,
) -> tuple[Tensor, Tensor]:
    """The next group (B, n <= K), `eos` where padded, and which clips met the requirement in it."""
    rows = torch.arange(len(ids))
    logits[..., eos] = -torch.inf
    for taken in ids.unbind(1):
        logits[rows, :, taken] = -torch.inf
    group: list[Tensor] = []
    for head in range(logits.shape[1]):
        if len(group) + ids.shape[1] >= budget or bool((logits[:, head] == -torch.inf).all()):
            break
        if error is not None:
            losses[:, head] = error.predicted_loss()
            logits[:, head, :eos] += error.scores()
        group.append(logits[:, head].argmax(-1))
        if error is not None:
            error.take(group[-1])
        logits[rows, head + 1 :, group[-1]] = -torch.inf
    chosen = torch.stack(group, dim=1).where(unfinished[:, None], eos)
    if requirement is None:
        return chosen, torch.zeros_like(unfinished)
    met = losses[:, : chosen.shape[1]] <= requirement
    if not ids.shape[1]:
        met[:, 0] = False
    return chosen.where(~met, eos), met.any(1)
