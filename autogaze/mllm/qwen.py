"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5: units of 2 x 2 patches of two frames, cut before the tower.

The processor lists patches unit by unit, step after step, so kept units are stretches of its rows. The tower takes the
values that depend on places (rotary positions, bounds of frames and windows, interpolated positions) as arguments, and
gets those of the kept rows. Positions in the language model are the dense prompt's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.vision_utils import (
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)

from autogaze.mllm.attention import Segments, within_segments
from autogaze.mllm.family import Family, Features, Inputs
from autogaze.mllm.gazing import Video
from autogaze.mllm.units import UnitGrid


class Qwen(Family):
    """Towers with 2-D rotary positions that attend within a frame pair: Qwen2-VL."""

    @property
    def tower(self) -> Any:
        return self.model.model.visual

    @property
    def merge(self) -> int:
        """Patches along a side of a unit."""
        return int(self.tower.spatial_merge_size)

    def step_text(self, video_inputs: Inputs, index: int) -> str:
        grids = video_inputs["video_grid_thw"].clone()
        grids[:, 1:] = self.processor.video_processor.merge_size
        return self.processor.replace_video_token({**video_inputs, "video_grid_thw": grids}, index)

    def grids(self, inputs: Inputs) -> list[UnitGrid]:
        return [UnitGrid(t, h // self.merge, w // self.merge) for t, h, w in _rows(inputs, "video_grid_thw")]

    def videos(self, inputs: Inputs) -> list[Video]:
        config, m = self.model.config.vision_config, self.merge
        p, pair = config.patch_size, getattr(config, "temporal_patch_size", 1)
        videos, start = [], 0
        for grid in self.grids(inputs):
            rows = len(grid) * m * m
            patches = inputs["pixel_values_videos"][start : start + rows]
            start += rows
            parts = patches.view(grid.steps, grid.rows, grid.columns, m, m, 3, pair, p, p)
            frames = sum(parts[..., i, :, :].float() for i in range(pair)) / pair  # (T, R, C, m, m, 3, p, p)
            frames = frames.permute(0, 5, 1, 3, 6, 2, 4, 7).reshape(grid.steps, 3, grid.rows * m * p, -1)
            videos.append(Video(frames, grid))
        return videos

    @torch.no_grad()
    def encode(self, inputs: Inputs, kept: Sequence[Tensor]) -> list[Features]:
        grid_thw, m = inputs["video_grid_thw"].cpu(), self.merge
        keep = torch.cat([mask.flatten() for mask in kept])
        units = keep.nonzero()[:, 0]
        patches = (units[:, None] * m * m + torch.arange(m * m)).flatten()
        counts = torch.cat([mask.sum(-1) for mask in kept])
        device = inputs["pixel_values_videos"].device
        pixels = inputs["pixel_values_videos"][patches.to(device)]
        pixels = self.normalise(pixels.view(len(pixels), 3, -1, self._patch), inputs["videos_kwargs"]).flatten(1)
        frames = Segments.of(counts * m * m, device)
        places, divisions = self.places(grid_thw, keep, units, patches, device)
        with within_segments(self.tower.config, frames, *divisions):
            out = self.run_tower(pixels.type(self.tower_dtype), grid_thw.to(device), frames, places)
        sizes = [int(mask.sum()) for mask in kept]
        tokens = cast(Tensor, out.pooler_output).split(sizes)
        deep = [part.split(sizes) for part in getattr(out, "deepstack_features", None) or ()]
        return [Features(part, tuple(layer[i] for layer in deep)) for i, part in enumerate(tokens)]

    def run_tower(
        self, pixels: Tensor, grid_thw: Tensor, frames: Segments, places: dict[str, Any]
    ) -> BaseModelOutputWithPooling:
        """The tower's own call on kept rows."""
        return self.tower(pixels, grid_thw=grid_thw, cu_seqlens=frames.bounds, max_seqlen=frames.longest, **places)

    def places(
        self, grid_thw: Tensor, keep: Tensor, units: Tensor, patches: Tensor, device: torch.device
    ) -> tuple[dict[str, Any], list[Segments]]:
        """Inputs of the tower that place the kept rows, and divisions of the rows besides frames.

        Args:
            grid_thw: (videos, 3), on the CPU like all that follows.
            keep: (all units) bool.
            units, patches: indices of the kept ones.
        """
        table = get_vision_position_ids(_one_step(grid_thw), self.merge)
        return {"position_ids": table[_in_one_step(grid_thw)[patches]].to(device)}, []

    @torch.no_grad()
    def images(self, inputs: Inputs) -> list[Features]:
        if inputs.get("pixel_values") is None:
            return []
        out = self.model.model.get_image_features(
            inputs["pixel_values"], inputs["image_grid_thw"].to(inputs["pixel_values"].device), return_dict=True
        )
        deep = getattr(out, "deepstack_features", None) or ()
        return [Features(part, tuple(layer[i] for layer in deep)) for i, part in enumerate(out.pooler_output)]

    def positions(self, inputs: Inputs) -> Tensor:
        names = ("input_ids", "attention_mask", "mm_token_type_ids", "image_grid_thw", "video_grid_thw")
        given = {name: inputs[name].cpu() for name in names if inputs.get(name) is not None}
        if "video_grid_thw" not in given and "image_grid_thw" not in given:
            return super().positions(inputs).expand(3, -1, -1)
        if (seconds := inputs.get("second_per_grid_ts")) is not None:
            given["second_per_grid_ts"] = torch.as_tensor(seconds).cpu()
        return self.model.model.get_rope_index(**given)[0]

    def outputs(self, features: Sequence[Features], modality: str) -> BaseModelOutputWithPooling:
        out = super().outputs(features, modality)
        if features and features[0].deepstack:
            out.deepstack_features = [list(layer) for layer in zip(*(part.deepstack for part in features), strict=True)]
        return out

    @property
    def _patch(self) -> int:
        return int(self.model.config.vision_config.patch_size)


class WindowedQwen(Qwen):
    """Qwen2.5-VL: most blocks attend in windows of 112 pixels, made anew over the kept units."""

    def places(
        self, grid_thw: Tensor, keep: Tensor, units: Tensor, patches: Tensor, device: torch.device
    ) -> tuple[dict[str, Any], list[Segments]]:
        places, _ = super().places(grid_thw, keep, units, patches, device)
        per_unit, number, start = self.merge**2, 0, 0
        orders, windows = [], []
        for (steps, rows, columns), step in zip(grid_thw.tolist(), _one_step(grid_thw), strict=True):
            order, bounds = get_vision_window_index(
                step[None],
                spatial_merge_size=self.merge,
                window_size=self.tower.window_size,
                patch_size=self.tower.patch_size,
            )
            window = torch.arange(len(bounds) - 1).repeat_interleave(bounds.diff() // per_unit)  # of order's entries
            at = torch.arange(steps)[:, None]
            orders.append((order + at * rows * columns // per_unit + start).flatten())
            windows.append((window + at * (len(bounds) - 1) + number).flatten())
            start, number = start + steps * rows * columns // per_unit, number + steps * (len(bounds) - 1)
        order, window = torch.cat(orders), torch.cat(windows)
        still = keep[order]
        new = torch.full((len(keep),), -1)
        new[units] = torch.arange(len(units))
        cut = Segments.of(torch.bincount(window[still], minlength=number) * per_unit, device)
        places |= {
            "window_index": new[order[still]].to(device),
            "cu_window_seqlens": cut.bounds,
            "max_window_seqlen": cut.longest,
        }
        return places, [cut]


class InterpolatedQwen(Qwen):
    """Qwen3-VL and Qwen3.5: learned positions, interpolated to the video's grid, besides the rotary ones."""

    def places(
        self, grid_thw: Tensor, keep: Tensor, units: Tensor, patches: Tensor, device: torch.device
    ) -> tuple[dict[str, Any], list[Segments]]:
        places, divisions = super().places(grid_thw, keep, units, patches, device)
        tower = self.tower
        indices, weights = get_vision_interpolation_indices_and_weights(
            _one_step(grid_thw),
            num_grid_per_side=tower.num_grid_per_side,
            mode=tower.interpolation_mode,
            align_corners=tower.interpolation_align_corners,
            spatial_merge_size=self.merge,
        )
        at = _in_one_step(grid_thw)[patches]
        places |= {"interp_indices": indices[at].to(device), "interp_weights": weights[at].to(device)}
        return places, divisions


def _rows(inputs: Inputs, name: str) -> list[list[int]]:
    return [] if inputs.get(name) is None else inputs[name].tolist()


def _one_step(grid_thw: Tensor) -> Tensor:
    """The grids of the videos' single steps: places within a step are the same in all of them."""
    one = grid_thw.clone()
    one[:, 0] = 1
    return one


def _in_one_step(grid_thw: Tensor) -> Tensor:
    """(all patches,) where each patch stands in a table of one step a video."""
    start, parts = 0, []
    for steps, rows, columns in grid_thw.tolist():
        parts.append(torch.arange(rows * columns).repeat(steps) + start)
        start += rows * columns
    return torch.cat(parts)
