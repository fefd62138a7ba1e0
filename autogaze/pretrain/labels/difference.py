"""Cheap labels: the greedy choice on plain pixels (`autogaze.selectors.difference`), with the true loss it reaches.

No reconstruction is tried, so a label costs about a thousandth of a searched one. The judge looks once at the end:
the loss after the last choice of each frame is known, that of the choices before is not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from autogaze.pretrain.judge import Judge
from autogaze.pretrain.labels.greedy import GreedyGaze
from autogaze.pretrain.reconstructor.network import Reconstructor
from autogaze.selectors.difference import DifferenceSelector


@torch.no_grad()
def difference_gaze(model: Reconstructor, video: Tensor, budgets: Tensor) -> GreedyGaze:
    """Choose in every frame of a batch of clips what lowers the error of the pasted picture most.

    Args:
        model: judges the result; its device must be that of the video.
        video: (B, T, 3, H, W) float, of the size of the model's grid.
        budgets: (B, T) int64, patches to choose in each frame, 1 to patches_per_frame.

    Returns:
        the choices in their order; the loss (B, T, K + 1) is NaN but after the last choice of each frame.
    """
    with torch.autocast(video.device.type, enabled=False):  # pixels are compared in full precision
        selector = DifferenceSelector(model.grid)
        gaze = selector.choose(video.float(), budgets)
    loss = torch.full((*budgets.shape, gaze.ids.shape[-1] + 1), torch.nan, device=video.device)
    last = Judge(model).losses(video, gaze)
    return GreedyGaze(gaze, loss.scatter(2, gaze.counts[..., None], last[..., None]))
