"""Gemma 4: units of 3 x 3 patches of one frame, joined by their mean.

Its tower reads the place of every patch, so kept patches need no others beside them. Its own call counts tokens by the
patches that it is given, frames padded to one length; here its parts are called one after another on the kept patches
of all frames, packed into one sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from autogaze.mllm.attention import Segments, within_segments
from autogaze.mllm.family import Family, Features, Inputs
from autogaze.mllm.gazing import Video
from autogaze.mllm.units import UnitGrid, unit_patches


class Gemma4(Family):
    """Gemma 4 with a vision tower; the larger models let the tokens of a frame see one another."""

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        vision = model.config.vision_config
        if vision.num_attention_heads != vision.num_key_value_heads:
            raise ValueError(
                "Gemma 4 is gazed where every head of the tower has its own keys, got "
                f"{vision.num_attention_heads} heads and {vision.num_key_value_heads} of keys"
            )
        self.merge = int(vision.pooling_kernel_size)
        self.patch = int(vision.patch_size)

    @property
    def tower(self) -> Any:
        return self.model.model.vision_tower

    def step_text(self, video_inputs: Inputs, index: int) -> str:
        one = [1] * len(video_inputs["num_soft_tokens_per_video"])
        return self.processor.replace_video_token({**video_inputs, "num_soft_tokens_per_video": one}, index)

    def grids(self, inputs: Inputs) -> list[UnitGrid]:
        first, grids = 0, []
        for steps in inputs["steps"]:
            columns, rows = (inputs["video_position_ids"][first].amax(0) + 1).tolist()
            grids.append(UnitGrid(steps, rows // self.merge, columns // self.merge))
            first += steps
        return grids

    def videos(self, inputs: Inputs) -> list[Video]:
        grids = self.grids(inputs)
        parts = inputs["pixel_values_videos"].split([grid.steps for grid in grids])
        videos, p, m = [], self.patch, self.merge
        for part, grid in zip(parts, grids, strict=True):
            patches = part[:, : grid.per_step * m * m].float()
            frames = patches.view(grid.steps, grid.rows * m, grid.columns * m, p, p, 3)
            frames = frames.permute(0, 5, 1, 3, 2, 4).reshape(grid.steps, 3, grid.rows * m * p, -1)
            videos.append(Video(frames, grid))
        return videos

    @torch.no_grad()
    def encode(self, inputs: Inputs, kept: Sequence[Tensor]) -> list[Features]:
        pixels, places = inputs["pixel_values_videos"], inputs["video_position_ids"]
        device, width = pixels.device, pixels.shape[1]  # rows of a frame, filler included
        at, first = [], 0
        for grid, keep in zip(self.grids(inputs), kept, strict=True):
            frame, unit = keep.nonzero(as_tuple=True)
            at.append((first + frame[:, None]) * width + unit_patches(grid.rows, grid.columns, self.merge)[unit])
            first += grid.steps
        rows, back = torch.cat(at).unique(return_inverse=True)  # in the frame's own order; back: (N, merge * merge)
        segments = Segments.of(torch.cat([keep.sum(-1) for keep in kept]) * self.merge**2, device)
        rows = rows.to(device)
        patches = pixels.flatten(0, 1)[rows].view(len(rows), self.patch, self.patch, 3).movedim(-1, 1)
        patches = self.normalise(patches, inputs["videos_kwargs"]).movedim(1, -1).flatten(1)
        positions = places.to(device).flatten(0, 1)[rows][None]
        embedded = self.tower.patch_embedder(patches[None], positions, torch.zeros_like(positions[..., 0]).bool())
        with within_segments(self.tower.config, segments, packed=True):
            encoded = self.tower.encoder(embedded, attention_mask=None, pixel_position_ids=positions).last_hidden_state
        tokens = self._join(encoded[0][back.to(device)])
        return [Features(part) for part in tokens.split([int(keep.sum()) for keep in kept])]

    def _join(self, units: Tensor) -> Tensor:
        """(N, merge * merge, D) patches of units -> (N, D') tokens, in float32 where the tower's own pooling is."""
        pooled = units.float().mean(1).to(units.dtype).float() * self.tower.pooler.root_hidden_size
        if self.tower.config.standardize:
            pooled = (pooled - self.tower.std_bias.float()) * self.tower.std_scale.float()
        return self.model.model.embed_vision(inputs_embeds=pooled.to(units.dtype))

    @torch.no_grad()
    def images(self, inputs: Inputs) -> list[Features]:
        if inputs.get("pixel_values") is None:
            return []
        places = inputs["image_position_ids"].to(inputs["pixel_values"].device)
        out = self.model.model.get_image_features(inputs["pixel_values"], places, return_dict=True)
        return [Features(part) for part in out.pooler_output]

    def besides(self, input_ids: Tensor) -> Inputs:
        if self.model.config.get_text_config().use_bidirectional_attention != "vision":
            return {}
        pictures, frames = (input_ids == self.placeholder(name) for name in ("image", "video"))
        return {"mm_token_type_ids": pictures.long() + 2 * frames.long()}
