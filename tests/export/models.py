"""Small models whose best id wins clearly, clips that they look at in different ways, and how gazes are compared."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from autogaze.core.gaze import Gaze
from autogaze.model import AutoGaze, AutoGazeConfig

SMALL = AutoGazeConfig(
    residual_map=False,
    scales=(16, 32, 64),
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=3,
    head_dim=16,
    intermediate_size=96,
    num_multi_token_pred=4,
    max_num_frames=5,
    encoder_depth=2,
    gazing_ratio=0.5,
    task_loss_requirement=None,
)


def sharp(config: AutoGazeConfig, factor: float = 3.0) -> AutoGaze:
    """A random model whose best id wins clearly."""
    torch.manual_seed(0)
    model = AutoGaze(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name and "bias" not in name and not name.startswith("residual_map."):
                parameter *= factor
        if model.residual_map is not None and model.residual_map.gate is not None:
            torch.nn.init.normal_(model.residual_map.gate.weight, std=0.1)
            torch.nn.init.normal_(model.residual_map.gate.bias, std=0.1)
    return model


def clips(batch: int, frames: int) -> Tensor:
    """Blocks of 8 pixels that drift, under noise: scales differ in what they take away, and places in what is left."""
    generator = torch.Generator().manual_seed(batch + frames)
    blocks = 0.4 * torch.randn(batch, frames, 3, 8, 8, generator=generator).cumsum(dim=1)
    return blocks.repeat_interleave(8, -1).repeat_interleave(8, -2) + 0.2 * torch.randn(
        batch, frames, 3, 64, 64, generator=generator
    )


def requirement(model: AutoGaze, video: Tensor, quantile: float = 0.15) -> float:
    """A requirement that some frames meet."""
    free = model.generate(video, 0.9)
    assert free.task_loss is not None
    return float(free.task_loss[free.chosen].quantile(quantile))


def alone(model: AutoGaze, video: Tensor, ratio: Any, needed: Any) -> Gaze:
    """The gaze of every clip by itself."""
    width, gazes = 0, []
    for i in range(len(video)):
        parts = (value[i : i + 1] if isinstance(value, Tensor) else value for value in (ratio, needed))
        gazes.append(model.generate(video[i : i + 1], *parts))
        width = max(width, gazes[-1].ids.shape[2])
    fills = (0, False, float("nan"))
    ids, chosen, loss = (
        torch.cat([F.pad(part, (0, width - part.shape[-1]), value=fill) for part in parts])
        for parts, fill in zip(zip(*((g.ids, g.chosen, g.task_loss) for g in gazes), strict=True), fills, strict=True)
    )
    return Gaze(ids, chosen, model.grid, loss)


def assert_same(expected: Gaze, got: Gaze) -> None:
    width = expected.ids.shape[2]
    assert not got.chosen[..., width:].any()
    torch.testing.assert_close(got.chosen[..., :width], expected.chosen)
    assert torch.equal(got.ids[..., :width].where(expected.chosen, 0), expected.ids.where(expected.chosen, 0))
    assert expected.task_loss is not None and got.task_loss is not None
    torch.testing.assert_close(got.task_loss[..., :width], expected.task_loss, atol=1e-4, rtol=0, equal_nan=True)
