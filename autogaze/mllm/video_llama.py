"""VideoLLaMA3: units of 2 x 2 patches of one frame, joined by their mean."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from autogaze.mllm.attention import Segments
from autogaze.mllm.family import Features, Inputs
from autogaze.mllm.qwen import Qwen


class VideoLlama3(Qwen):
    """A tower like Qwen2-VL's with plain positions in the language model.

    Its processor's own choice of tokens by pixel differences is turned off: the gaze takes its place, in front of the
    tower instead of behind it.
    """

    reads = {"use_token_compression": False}

    @property
    def tower(self) -> Any:
        return self.model.model.vision_model

    @property
    def merge(self) -> int:
        return int(self.processor.video_processor.merge_size)

    def step_text(self, video_inputs: Inputs, index: int) -> str:
        merges = video_inputs["video_merge_sizes"]
        grids = video_inputs["video_grid_thw"]
        per_step = [int(grid[1:].prod() // merge**2) for grid, merge in zip(grids, merges, strict=True)]
        masks = [torch.arange(int(grid[0]) * n) % n == 0 for grid, n in zip(grids, per_step, strict=True)]
        changed = {**video_inputs, "video_compression_mask": torch.cat(masks)}
        return self.processor.replace_video_token(changed, index)

    def run_tower(
        self, pixels: Tensor, grid_thw: Tensor, frames: Segments, places: dict[str, Any]
    ) -> BaseModelOutputWithPooling:
        m = self.merge
        units = torch.tensor([[len(pixels) // m**2, m, m]], device=pixels.device)  # each a picture of its own to join
        out = self.tower(
            pixels,
            grid_thw=units,
            merge_sizes=torch.tensor([m], device=pixels.device),
            cu_seqlens=frames.bounds,
            max_seqlen=frames.longest,
            **places,
        )
        out.pooler_output = self.model.model.projector(out.last_hidden_state)
        return out

    @torch.no_grad()
    def images(self, inputs: Inputs) -> list[Features]:
        if inputs.get("pixel_values") is None:
            return []
        out = self.model.model.get_image_features(
            inputs["pixel_values"], inputs["image_grid_thw"], inputs["image_merge_sizes"], return_dict=True
        )
        return [Features(part) for part in out.pooler_output]

    def positions(self, inputs: Inputs) -> Tensor:
        return (inputs["attention_mask"].cumsum(-1) - 1)[None]
