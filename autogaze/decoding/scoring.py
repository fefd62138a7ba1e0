"""Scoring given ids: the forward pass of both training stages, all frames and ids at once.

Padding is moved behind the sequence, so that a plain causal attention is exact: a clip's sequence is the same as if it
stood alone, and no N x N mask is ever made.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from autogaze.core.gaze import Gaze
from autogaze.decoding.sequence import positions_of_ids, predicted_from
from autogaze.network.decoder import GazeDecoder
from autogaze.network.network import GazeNetwork


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of given ids by a model; zero at slots that were not chosen."""

    log_action_probs: Tensor  # (B, T, K) float, log-probability of each id
    task_loss_prediction: Tensor  # (B, T, K) float, predicted reconstruction loss after each id


def score(model: GazeNetwork, video: Tensor, gaze: Gaze, temperature: float | None, as_decoded: bool) -> Scores:
    """See `AutoGaze.score`."""
    logits, after = score_all(model, video, gaze, as_decoded)
    log_probs = _log_probs(logits, gaze, temperature)
    return Scores(log_probs.where(gaze.chosen, 0), after.where(gaze.chosen, 0))


def score_all(model: GazeNetwork, video: Tensor, gaze: Gaze, as_decoded: bool) -> tuple[Tensor, Tensor]:
    """Logits of every id at each slot of a gaze, given the slots of the groups before, and predicted losses.

    Args:
        video, gaze, as_decoded: as in `AutoGaze.score`.

    Returns:
        logits (B, T, K, patches_per_frame + 1), the last of `eos`, and the loss predicted after each slot (B, T, K);
        both are undefined at slots that were not chosen.
    """
    _check(model, video, gaze)
    decoder, group = model.gaze_decoder, model.gaze_decoder.group
    tokens, _ = model.embed(video)
    hidden, visual_at, gaze_at = _hidden_states(model, tokens.visual, gaze, as_decoded)
    slot = torch.arange(gaze.ids.shape[-1], device=gaze.device)
    logits, predicted = _heads_at(decoder, hidden, predicted_from(visual_at, gaze_at, group))
    if model.residual_map is not None and tokens.grey is not None:
        scores, predicted = model.residual_map.along(tokens.grey, gaze.ids, gaze.chosen, tokens.visual)
        # The best at 0: what is never chosen, `eos`, has no score, and takes no part in the policy either way.
        return logits + F.pad(scores - scores.amax(-1, keepdim=True), (0, 1)), predicted
    own = F.linear(_gather(hidden, gaze_at), decoder.task_loss_prediction_head.weight[:1]).squeeze(-1).float()
    return logits, torch.where(slot % group == group - 1, own, predicted)


def loss_states(model: GazeNetwork, video: Tensor, gaze: Gaze) -> tuple[Tensor, Tensor]:
    """Hidden states that the predicted loss after each slot of a gaze is read from while `generate` runs.

    Args:
        video, gaze: as in `AutoGaze.score`.

    Returns:
        hidden states (B, T, K, width), and which row of the loss head reads them (K,) int64: the row after the slot's
        own, at the state that the slot's group was predicted from; at the end of a group its first, at its last token.
    """
    _check(model, video, gaze)
    tokens, _ = model.embed(video)
    hidden, visual_at, gaze_at = _hidden_states(model, tokens.visual, gaze, as_decoded=True)
    group, slot = model.gaze_decoder.group, torch.arange(gaze.ids.shape[-1], device=gaze.device)
    end = slot % group == group - 1
    states = _gather(hidden, torch.where(end, gaze_at, predicted_from(visual_at, gaze_at, group)))
    return states, torch.where(end, 0, slot % group + 1)


def _check(model: GazeNetwork, video: Tensor, gaze: Gaze) -> None:
    if gaze.grid != model.grid:
        raise ValueError(f"the gaze is on another grid than the model: {gaze.grid} and {model.grid}")
    if gaze.ids.shape[:2] != video.shape[:2]:
        raise ValueError(
            f"gaze and video must agree on clips and frames, got {tuple(gaze.ids.shape[:2])} "
            f"and {tuple(video.shape[:2])}"
        )
    if video.shape[1] > model.config.max_num_frames:
        raise ValueError(
            f"score takes at most {model.config.max_num_frames} frames, got {video.shape[1]}; cut the clip"
        )


def _hidden_states(model: GazeNetwork, visual: Tensor, gaze: Gaze, as_decoded: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states (B, N, width) of the packed sequence, and where in it the last visual token of each frame (B, T)
    and each gaze token (B, T, K) stand (a token that was not chosen: anywhere)."""
    tokens = model.gaze_decoder.model.embed_tokens(gaze.ids.where(gaze.chosen, 0))
    frames = torch.cat([visual, tokens.to(visual.dtype)], dim=2)  # (B, T, V + K, width)
    valid = torch.cat([gaze.chosen.new_ones(visual.shape[:3]), gaze.chosen], dim=2)
    batch, _, width, channels = frames.shape
    order = (~valid.flatten(1)).to(torch.uint8).sort(dim=1, stable=True).indices
    packed = frames.flatten(1, 2).gather(1, order[..., None].expand(-1, -1, channels))
    place = (valid.flatten(1).cumsum(1) - 1).clamp(min=0).unflatten(1, (-1, width))
    visual_at, gaze_at = place[..., visual.shape[2] - 1], place[..., visual.shape[2] :]
    positions = torch.arange(packed.shape[1], device=packed.device).expand(batch, -1)
    if as_decoded:
        ids_at = positions_of_ids(gaze.chosen, visual_at, gaze_at, model.gaze_decoder.group)
        moved = torch.cat([place[..., : visual.shape[2]], ids_at], dim=2)
        positions = moved.flatten(1).gather(1, order)

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)

    hidden = model.gaze_decoder.model(packed, positions, attend)
    return hidden, visual_at, gaze_at


def _gather(hidden: Tensor, at: Tensor) -> Tensor:
    """(B, T, K, width) states at positions (B, T, K)."""
    flat = at.flatten(1)[..., None].expand(-1, -1, hidden.shape[-1])
    return hidden.gather(1, flat).unflatten(1, at.shape[1:])


def _heads_at(decoder: GazeDecoder, hidden: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, T, K, vocabulary) of each token's head and the loss that the next head predicts (B, T, K)."""
    group, slots = decoder.group, source.shape[-1]
    states = _gather(hidden, source[..., ::group])  # one position serves a whole group
    logits, losses = decoder.heads(states)  # (B, T, groups, K, vocabulary), (B, T, groups, K)
    logits = logits.flatten(2, 3)[..., :slots, :]
    after = losses.roll(-1, dims=-1).flatten(2, 3)[..., :slots]
    return logits, after


def _log_probs(logits: Tensor, gaze: Gaze, temperature: float | None) -> Tensor:
    """(B, T, K) log-probabilities of the ids."""
    ids = gaze.ids.where(gaze.chosen, 0)[..., None]
    if temperature is None:
        return (logits.softmax(-1).gather(-1, ids).squeeze(-1) + 1e-8).log()  # 1e-8: as published
    taken = F.one_hot(ids.squeeze(-1), logits.shape[-1]).bool() & gaze.chosen[..., None]
    before = (taken.cumsum(2, dtype=torch.uint8) > taken) & gaze.chosen[..., None]  # held by earlier slots of the frame
    allowed = (logits / temperature).masked_fill(before, -torch.inf)
    allowed = torch.cat([allowed[..., :-1], torch.full_like(allowed[..., -1:], -torch.inf)], dim=-1)
    return allowed.log_softmax(-1).gather(-1, ids).squeeze(-1)
