"""ViTStream: a ViT over a video that does not end, a few new patches a frame, with a memory that does not grow."""

from __future__ import annotations

import torch
from torch import Tensor

from autogaze.core.gaze import Gaze
from autogaze.core.grid import PatchGrid
from autogaze.vit.features import PackedFeatures
from autogaze.vit.gazed import GazedViT
from autogaze.vit.memory import Memory


class ViTStream:
    """Encode a stream frame by frame; equals `GazedViT` with `attention="memory"` on the whole clip.

    Args:
        gazed: with `attention="memory"`, in eval mode.
        batch: streams side by side.

    Raises:
        ValueError: if the attention is another: it has nothing to remember, call the GazedViT itself.
    """

    def __init__(self, gazed: GazedViT, batch: int = 1) -> None:
        if gazed.attention != "memory":
            raise ValueError(f'a stream needs attention="memory", this GazedViT has {gazed.attention!r}')
        self.gazed, self.batch = gazed, batch
        self.memory: Memory | None = None
        self.grid: PatchGrid | None = None

    def forget(self) -> None:
        """Start anew, as after a cut."""
        self.memory = None

    @torch.no_grad()
    def step(self, video: Tensor, gaze: Gaze) -> PackedFeatures:
        """Encode the next frames.

        Args:
            video: (B, T, 3, H, W) float, as in `GazedViT`; T is 1 frame or several.
            gaze: (B, T, K), on the grid of the frames before.

        Returns:
            Features of the new patches. `pool()` and `dense()` cover the whole picture, also what was seen before.

        Raises:
            ValueError: as `GazedViT`, or if the number of streams or the grid changes.
        """
        gaze = self.gazed.fitted(video, gaze)
        if len(video) != self.batch:
            raise ValueError(f"this stream has {self.batch} clips side by side, got a video of {len(video)}")
        if self.memory is None:
            self.memory, self.grid = Memory.empty(gaze.grid, self.batch, video.device), gaze.grid
        if gaze.grid != self.grid:
            raise ValueError(f"this stream began on {self.grid}, got a gaze on {gaze.grid}; call forget() first")
        return self.gazed.encode_gaze(video, gaze, memory=self.memory)
