"""Credit one by one: what each id of a frame was worth, by leaving it out.

A rollout's reward is one number a frame, for dozens of ids: it takes many rollouts to tell which of them were good.
With a judge of pasted pictures the question can be asked directly: paste the frame without one patch, and see how much
worse it gets. A coarse patch under finer ones is worth nothing then, as it should be. Ids are compared with the median
of their frame: a few are often worth more than all others. What one is worth to later frames is left to the group's
advantage.

Source: difference rewards, Wolpert and Tumer, "Optimal payoff functions for members of collectives", 2002.
"""

from __future__ import annotations

import torch
from torch import Tensor

from autogaze.core.gaze import Gaze
from autogaze.pretrain.judge import PasteJudge
from autogaze.pretrain.reconstructor.paste import Painter, painter_of, paste

PICTURES = 768  # judged at once: bounds the memory


@torch.no_grad()
def leave_one_out(
    judge: PasteJudge,
    video: Tensor,
    gaze: Gaze,
    truth: Tensor,
    frames: int,
    ids: int,
    generator: torch.Generator,
) -> Tensor:
    """Advantage of ids over the others of their frame, in some frames of each clip.

    Args:
        judge: its distance is the loss.
        video: (N, T, 3, H, W) float, what the model was shown.
        gaze: (N, T, K) of the same clips.
        truth: (b, T, 3, H, W), what the judge compares with; N is a multiple of b, in turns.
        frames: how many frames of each clip, drawn at random.
        ids: how many ids of each such frame at most, drawn at random.
        generator: draws them, on the CPU.

    Returns:
        (N, T, K) float32 in units of the loss: how much more than the median of its frame an id takes away. Where some
        of a frame's ids were drawn only, theirs stand for all. 0 for what was not drawn.
    """
    count, length, slots = gaze.ids.shape
    frames, ids = min(frames, length), min(ids, slots)
    device = video.device
    at = torch.rand(count, length, generator=generator).argsort(1)[:, :frames].to(device)  # (N, f)
    row = torch.arange(count, device=device)[:, None]
    chosen = gaze.chosen[row, at]  # (N, f, K)
    draw = torch.rand(count, frames, slots, generator=generator).to(device).masked_fill(~chosen, -1.0)
    slot = draw.topk(ids, dim=-1).indices  # (N, f, i)
    drawn = chosen.gather(-1, slot)
    left_out = gaze.ids[row, at].gather(-1, slot).where(drawn, 0)
    worse = torch.zeros(drawn.shape, device=device)
    step = max(1, PICTURES // (frames * ids))
    for i in range(0, count, step):
        part = slice(i, i + step)
        shown = truth[torch.arange(count, device=device)[part] % len(truth)]
        worse[part] = _losses_without(judge, video[part], gaze[part], shown, at[part], left_out[part], drawn[part])
    share = chosen.sum(-1, keepdim=True) / drawn.sum(-1, keepdim=True).clamp(min=1)
    usual = worse.masked_fill(~drawn, torch.nan).nanmedian(-1, keepdim=True).values.nan_to_num()
    credit = (worse - usual) * drawn * share
    found = torch.zeros(count, length, slots, device=device)
    found[row[..., None], at[..., None], slot] = credit
    return found


def _losses_without(
    judge: PasteJudge, video: Tensor, gaze: Gaze, truth: Tensor, at: Tensor, left_out: Tensor, drawn: Tensor
) -> Tensor:
    """(n, f, i) losses of frames `at` (n, f) of clips, each without one of the ids `left_out` (n, f, i)."""
    distance = judge.distance_on(video.device)
    painter = painter_of(gaze.grid, video.device)
    row = torch.arange(len(video), device=video.device)[:, None]
    before = paste(video, gaze)[row, (at - 1).clamp(min=0)]
    before = before.masked_fill((at == 0)[..., None, None, None], 0.0)
    mask = gaze.patch_mask()[row, at][:, :, None].repeat(1, 1, left_out.shape[-1], 1)
    mask.scatter_(-1, left_out[..., None], mask.gather(-1, left_out[..., None]) & ~drawn[..., None])
    pictures = _painted(painter, video[row, at].flatten(0, 1), before.flatten(0, 1), mask.flatten(0, 1))
    target = tuple(part.repeat_interleave(mask.shape[2], 0) for part in distance.target(truth[row, at].flatten(0, 1)))
    return distance(pictures.flatten(0, 1), target).unflatten(0, left_out.shape)


def _painted(painter: Painter, frames: Tensor, canvas: Tensor, mask: Tensor) -> Tensor:
    """Frames (n, 3, H, W) painted on canvases of the same shape, once for each set of patches (n, i, P):
    (n, i, 3, H, W)."""
    pictures = canvas[:, None].expand(-1, mask.shape[1], -1, -1, -1)
    for k, (image, part) in enumerate(zip(painter.cut(frames), painter.split(mask), strict=True)):
        pictures = torch.where(painter.spread(k, part)[:, :, None], painter.paint(k, image)[:, None], pictures)
    return pictures
