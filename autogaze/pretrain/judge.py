"""The judge: a frozen reconstructor that says what each frame lost by not being looked at in full."""

from __future__ import annotations

import torch
from torch import Tensor

from autogaze.core.gaze import Gaze
from autogaze.pretrain.reconstructor.network import Reconstructor


class Judge:
    """Stands beside a LightningModule without being one of its parts: no gradients, no place in its checkpoints.

    Args:
        reconstructor: a trained one; it is frozen here.
        clips: how many clips it judges in one pass, which bounds its memory.
    """

    def __init__(self, reconstructor: Reconstructor, clips: int = 96) -> None:
        self.reconstructor, self.clips = reconstructor.eval().requires_grad_(False), clips

    def to(self, device: torch.device) -> Judge:
        self.reconstructor.to(device)
        return self

    @torch.no_grad()
    def losses(self, video: Tensor, gaze: Gaze) -> Tensor:
        """(B, T) float32 reconstruction loss of every frame; the gaze may have fewer scales than the judge."""
        gaze = gaze.on_grid(self.reconstructor.grid)
        parts = [
            self.reconstructor(video[i : i + self.clips], gaze[i : i + self.clips]).loss
            for i in range(0, len(video), self.clips)
        ]
        return torch.cat(parts).float()
