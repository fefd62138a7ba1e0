"""InternVL3, SmolVLM2 and LLaVA-NeXT-Video: square frames, learned positions, one frame a step.

Their towers take whole frames. The parts of the tower are called one after another instead: embedding and positions of
whole frames, which is well under a hundredth of the work, then the blocks on the kept rows of all frames packed into
one sequence (class tokens stay), then the joining of a unit's patches and the projection.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from autogaze.mllm.attention import Segments, within_segments
from autogaze.mllm.family import Family, Features, Inputs
from autogaze.mllm.gazing import Video
from autogaze.mllm.units import UnitGrid, unit_patches

FRAMES_AT_ONCE = 64  # embedded together


class Framed(Family):
    """A tower that attends within a frame of fixed size."""

    merge: int  # patches along a side of a unit
    prefix: int  # class tokens of a frame

    @abstractmethod
    def frames(self, inputs: Inputs) -> Tensor:
        """(F, 3, H, W) frames of all videos, as the processor left them."""

    @abstractmethod
    def embed(self, frames: Tensor) -> Tensor:
        """(F, 3, H, W) normalised -> (F, prefix + patches, D) with positions."""

    @abstractmethod
    def blocks(self, rows: Tensor) -> Tensor:
        """(1, M, D) -> (1, M, D): everything from the first block to the last norm."""

    @abstractmethod
    def project(self, units: Tensor) -> Tensor:
        """(N, merge * merge, D) patches of units, row by row -> (N, D') tokens."""

    @property
    def tower(self) -> Any:
        return self.model.model.vision_tower

    @property
    def side(self) -> int:
        """Patches along a side of a frame."""
        vision = self.model.config.vision_config
        return int(vision.image_size // vision.patch_size)

    def grids(self, inputs: Inputs) -> list[UnitGrid]:
        units = self.side // self.merge
        return [UnitGrid(steps, units, units) for steps in inputs["steps"]]

    def videos(self, inputs: Inputs) -> list[Video]:
        grids = self.grids(inputs)
        parts = self.frames(inputs).split([grid.steps for grid in grids])
        return [Video(part.float(), grid) for part, grid in zip(parts, grids, strict=True)]

    @torch.no_grad()
    def encode(self, inputs: Inputs, kept: Sequence[Tensor]) -> list[Features]:
        keep = torch.cat(list(kept))  # (F, units)
        frames = self.frames(inputs)
        device, some = frames.device, keep.any(-1)
        keep = keep[some]
        units = self.side // self.merge
        patches = unit_patches(units, units, self.merge)  # (units, merge * merge)
        stays = torch.zeros(len(keep), self.side**2, dtype=torch.bool)
        stays[:, patches.flatten()] = keep.repeat_interleave(patches.shape[1], 1)
        rows = torch.cat([torch.ones(len(keep), self.prefix, dtype=torch.bool), stays], 1)  # in the frame's own order
        embedded = []
        for part, row in zip(frames[some.to(device)].split(FRAMES_AT_ONCE), rows.split(FRAMES_AT_ONCE), strict=True):
            pixels = self.normalise(part, inputs["videos_kwargs"]).to(self.tower_dtype)
            embedded.append(self.embed(pixels)[row.to(device)])
        segments = Segments.of(rows.sum(-1), device)
        with within_segments(self.tower.config, segments, packed=True):
            encoded = self.blocks(torch.cat(embedded)[None])[0]
        place = torch.full((rows.numel(),), -1)
        place[rows.flatten()] = torch.arange(int(rows.sum()))
        place = place.view(rows.shape)[:, self.prefix :][:, patches]  # (F, units, merge * merge)
        tokens = self.project(encoded[place[keep].to(device)])
        return [Features(part) for part in tokens.split([int(mask.sum()) for mask in kept])]

    @torch.no_grad()
    def images(self, inputs: Inputs) -> list[Features]:
        if inputs.get("pixel_values") is None:
            return []
        out = self.model.model.get_image_features(**self.image_inputs(inputs), return_dict=True)
        return [Features(part) for part in out.pooler_output]

    def image_inputs(self, inputs: Inputs) -> Inputs:
        """Arguments of the model's own call on still images."""
        return {"pixel_values": inputs["pixel_values"]}


class InternVL(Framed):
    """InternVL3: one token id for tiles of images and frames of videos, and one tensor of pixels for both."""

    modality = "image"
    prefix = 1

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        config, vision = model.config, model.config.vision_config
        self.merge = round(1 / config.downsample_ratio)
        if (config.vision_feature_layer, config.vision_feature_select_strategy) != (-1, "default"):
            raise ValueError(
                "InternVL is gazed with vision_feature_layer=-1 and vision_feature_select_strategy='default', got "
                f"{config.vision_feature_layer} and {config.vision_feature_select_strategy!r}"
            )
        heights = {size // patch for size, patch in zip(vision.image_size, vision.patch_size, strict=True)}
        if len(heights) > 1:
            raise ValueError(f"InternVL is gazed with square frames, got image_size={vision.image_size}")
        tokens = processor.tokenizer
        if tokens.convert_tokens_to_ids(processor.video_token) in (None, tokens.unk_token_id):
            raise ValueError(f"this InternVL tokenizer lacks the token {processor.video_token!r}")

    @property
    def side(self) -> int:
        vision = self.model.config.vision_config
        return int(vision.image_size[0] // vision.patch_size[0])

    def step_text(self, video_inputs: Inputs, index: int) -> str:
        one = copy(self.processor)
        one.image_seq_length = 1
        text = one.replace_video_token(video_inputs, index)
        return text.replace(self.processor.image_token, self.processor.video_token)

    def step_token(self) -> int:
        return int(self.processor.tokenizer.convert_tokens_to_ids(self.processor.video_token))

    def frames(self, inputs: Inputs) -> Tensor:
        return inputs["pixel_values"][self._tiles(inputs).to(inputs["pixel_values"].device)]

    def embed(self, frames: Tensor) -> Tensor:
        return self.tower.embeddings(frames)

    def blocks(self, rows: Tensor) -> Tensor:
        return self.tower.layernorm(self.tower.encoder(rows).last_hidden_state)

    def project(self, units: Tensor) -> Tensor:
        return self.model.model.multi_modal_projector(units.flatten(1))

    def image_inputs(self, inputs: Inputs) -> Inputs:
        return {"pixel_values": inputs["pixel_values"][~self._tiles(inputs).to(inputs["pixel_values"].device)]}

    def images(self, inputs: Inputs) -> list[Features]:
        if inputs.get("pixel_values") is None or bool(self._tiles(inputs).all()):
            return []
        return super().images(inputs)

    def arrange(self, inputs: Inputs, images: list[Features], videos: list[Features]) -> dict[str, list[Features]]:
        steps = iter(inputs.get("steps", ()))
        ordered, left, still, moving = [], 0, iter(images), iter(videos)
        for is_frame in self._tiles(inputs).tolist() if images or videos else ():
            if not is_frame:
                ordered.append(next(still))
            elif left == 0:
                ordered.append(next(moving))
                left = next(steps) - 1
            else:
                left -= 1
        return {"image": ordered} if ordered else {}

    def outputs(self, features: Sequence[Features], modality: str) -> BaseModelOutputWithPooling:
        tokens = torch.cat([part.tokens for part in features])
        return BaseModelOutputWithPooling(pooler_output=tokens[:, None])  # every token an image of one, for beam search

    def _tiles(self, inputs: Inputs) -> Tensor:
        """(tiles,) bool of `pixel_values`: which are frames of a video."""
        per_tile, tile = self.processor.image_seq_length, self.placeholder()
        kinds = []
        for ids in inputs["input_ids"]:
            ids = ids[(ids == tile) | (ids == self.step_token())]
            still = ids == tile
            kinds.append(~still[~still | (still.cumsum(0) % per_tile == 1 % per_tile)])
        return torch.cat(kinds)


class SmolVLM(Framed):
    """SmolVLM2: units of 4 x 4 patches; videos stand where images do, so a prompt holds one kind."""

    modality = "image"
    prefix = 0

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        self.merge = int(model.config.scale_factor)

    @property
    def tower(self) -> Any:
        return self.model.model.vision_model

    def step_text(self, video_inputs: Inputs, index: int) -> str:
        one = copy(self.processor)
        one.image_seq_len = 1
        return one.replace_video_token(video_inputs, index)

    def grids(self, inputs: Inputs) -> list[UnitGrid]:
        steps = sum(inputs["steps"])
        written = sum(int((ids == self.step_token()).sum()) for ids in inputs["input_ids"])
        if steps and written != steps:
            raise ValueError("SmolVLM's processor takes images or videos, not both in one call")
        return super().grids(inputs)

    def step_token(self) -> int:
        return int(self.processor.image_token_id)

    def placeholder(self, modality: str | None = None) -> int:
        return int(self.model.config.image_token_id)

    def frames(self, inputs: Inputs) -> Tensor:
        videos = inputs["pixel_values"]  # (V, most frames, 3, H, W), padded
        return torch.cat([video[:steps] for video, steps in zip(videos, inputs["steps"], strict=True)])

    def embed(self, frames: Tensor) -> Tensor:
        mask = torch.ones(len(frames), self.side, self.side, dtype=torch.bool, device=frames.device)
        return self.tower.embeddings(pixel_values=frames, patch_attention_mask=mask)

    def blocks(self, rows: Tensor) -> Tensor:
        encoded = self.tower.encoder(inputs_embeds=rows, attention_mask=None).last_hidden_state
        return self.tower.post_layernorm(encoded)

    def project(self, units: Tensor) -> Tensor:
        return self.model.model.connector.modality_projection(units.flatten(1))

    def images(self, inputs: Inputs) -> list[Features]:
        return [] if inputs["steps"] else super().images(inputs)

    def image_inputs(self, inputs: Inputs) -> Inputs:
        names = ("pixel_values", "pixel_attention_mask")
        return {name: inputs[name].to(self.model.device) for name in names if inputs.get(name) is not None}

    def arrange(self, inputs: Inputs, images: list[Features], videos: list[Features]) -> dict[str, list[Features]]:
        return {"image": images + videos} if images or videos else {}


class LlavaNextVideo(Framed):
    """LLaVA-NeXT-Video with a CLIP tower: a unit is the mean of 2 x 2 patches."""

    prefix = 1

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        config = model.config
        self.merge = int(config.spatial_pool_stride)
        if type(self.tower) is not CLIPVisionModel or not isinstance(config.vision_feature_layer, int):
            raise ValueError(
                "LLaVA-NeXT-Video is gazed with a CLIP tower and one vision_feature_layer, got "
                f"{type(self.tower).__name__} and {config.vision_feature_layer}"
            )
        if config.vision_feature_select_strategy != "default" or self.side % self.merge:
            raise ValueError(
                "LLaVA-NeXT-Video is gazed with vision_feature_select_strategy='default' and a stride that divides the "
                f"frame, got {config.vision_feature_select_strategy!r} and {self.merge} of {self.side} patches"
            )

    def step_text(self, video_inputs: Inputs, index: int) -> str:
        side = 2 * self.processor.patch_size  # of a frame that gives one token
        frames = len(video_inputs["pixel_values_videos"][index])
        nothing = torch.zeros(1).expand(frames, 3, side, side)
        return self.processor.replace_video_token({"pixel_values_videos": {index: nothing}}, index)

    def frames(self, inputs: Inputs) -> Tensor:
        videos = inputs["pixel_values_videos"]
        return videos.flatten(0, 1) if isinstance(videos, Tensor) else torch.cat(list(videos))

    def embed(self, frames: Tensor) -> Tensor:
        return self.tower.pre_layrnorm(self.tower.embeddings(frames))

    def blocks(self, rows: Tensor) -> Tensor:
        layers = self.tower.encoder.layers
        last = self.model.config.vision_feature_layer
        for layer in layers[: last if last >= 0 else len(layers) + 1 + last]:
            rows = layer(rows, None)
        return rows

    def project(self, units: Tensor) -> Tensor:
        square = units.transpose(1, 2).unflatten(-1, (self.merge, self.merge))  # (N, D, merge, merge)
        pooled = self.model.model.vision_resampler.pool(square).flatten(1)
        return self.model.model.multi_modal_projector(pooled)

    def image_inputs(self, inputs: Inputs) -> Inputs:
        return {"pixel_values": inputs["pixel_values"], "image_sizes": inputs["image_sizes"]}
