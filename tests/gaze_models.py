"""Small models whose choices are clear: the numbers that two ways of computing differ by cannot swap two ids."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from autogaze.model import AutoGaze, AutoGazeConfig

SMALL = AutoGazeConfig(
    scales=(16, 32, 64),
    patch_size=16,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    head_dim=16,
    intermediate_size=64,
    num_multi_token_pred=4,
    residual_map=False,
)  # 21 ids a frame


def small_model(seed: int = 0, **config: Any) -> AutoGaze:
    """A model with large random weights, so that every part of it matters to what is chosen."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoGaze(replace(SMALL, **config))
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv3d):
                module.weight.data.normal_(0, 2 / module.weight[0].numel() ** 0.5)
            elif isinstance(module, nn.Embedding):
                module.weight.data.normal_()
    return model.eval()


def random_video(clips: int = 2, frames: int = 5, side: int = 64, seed: int = 0) -> Tensor:
    """(B, T, 3, side, side): noise, a part of which stays from frame to frame."""
    generator = torch.Generator().manual_seed(seed)
    video = torch.randn(clips, frames, 3, side, side, generator=generator)
    for t in range(1, frames):
        video[:, t] = 0.8 * video[:, t - 1] + 0.6 * video[:, t]
    return video


def typical_loss(model: AutoGaze, video: Tensor, quantile: float = 0.2) -> float:
    """A requirement that some frames meet early and others do not."""
    loss = model.generate(video, gazing_ratio=None).task_loss
    assert loss is not None
    return max(0.0, float(loss[~loss.isnan()].quantile(quantile)))  # heads of random weights predict negative losses
