"""Gazing at videos in the units of a video LLM: frames to the order in which each step's units are worth keeping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, isnan

import torch
from torch import Tensor
from torch.nn import functional as F

from autogaze.mllm.units import Choice, UnitGrid, cut_tiles, tiles_for
from autogaze.model import AutoGaze


@dataclass(frozen=True, eq=False)
class Video:
    """One video as its tower cuts it."""

    frames: Tensor  # (steps, 3, H, W) float 0..255: the mean of the frames of each step
    grid: UnitGrid


class UnitGazer:
    """A gaze model in front of towers with units of any size.

    A frame is seen in tiles of the model's square, as few as leave a unit at least about as large as a cell; 14 x 14
    units are one tile, cell for cell. Every tile has the same share of its cells to spend.

    Args:
        model: the gaze model, on the device where it should run.
        gazing_ratio: largest share of a step's units; None sets no limit.
        task_loss_requirement: reconstruction loss at which a step may stop; None never stops early.
        first_step: the first step is kept in full, so the model is shown all of it.
        scales: of the model's grid, in pixels, that it may choose from. A coarser patch stands for the units under it.
            By default the finest alone; all where the first step is not kept in full, since fine patches would leave
            most of the picture unseen (docs/mllm.md compares).
    """

    def __init__(
        self,
        model: AutoGaze,
        gazing_ratio: float | None,
        task_loss_requirement: float | None = None,
        first_step: bool = True,
        scales: Sequence[int] | None = None,
    ) -> None:
        if gazing_ratio is not None and not 0 < gazing_ratio <= 1:
            raise ValueError(f"gazing_ratio must be in (0, 1], got {gazing_ratio}")
        if task_loss_requirement is not None and isnan(task_loss_requirement):
            raise ValueError("task_loss_requirement must be a number, got nan")
        self.model = model
        self.gazing_ratio, self.task_loss_requirement = gazing_ratio, task_loss_requirement
        self.first_step = first_step
        best = model.grid.scales[-1:] if first_step else model.grid.scales
        self.scales = best if scales is None else tuple(scales)

    @torch.no_grad()
    def __call__(self, videos: Sequence[Video]) -> list[Choice]:
        """The order of every video's units. Videos of one shape are decoded together."""
        groups: dict[UnitGrid, list[int]] = {}
        for index, video in enumerate(videos):
            groups.setdefault(video.grid, []).append(index)
        choices: dict[int, Choice] = {}
        for grid, members in groups.items():
            found = self._look([videos[index].frames for index in members], grid)
            choices.update(zip(members, found, strict=True))
        return [choices[index] for index in range(len(videos))]

    def _look(self, videos: list[Tensor], grid: UnitGrid) -> list[Choice]:
        side = self.model.grid.scales[-1]
        tiles = tiles_for(grid, self.model.grid.sides[-1])
        seen = torch.cat([cut_tiles(self._see(frames, (tiles[0] * side, tiles[1] * side)), tiles) for frames in videos])
        ratio = self._ratios(grid, tiles)
        requirement = self._requirements(grid.steps)
        gaze = self.model.generate(seen, ratio.expand(len(seen), -1), requirement, scales=self.scales)
        count = tiles[0] * tiles[1]
        return [Choice.of(gaze[i * count : (i + 1) * count], grid, tiles) for i in range(len(videos))]

    def _see(self, frames: Tensor, size: tuple[int, int]) -> Tensor:
        """(T, 3, H, W) 0..255 -> what the gaze model takes, of this size."""
        frames = frames.to(self.model.device)
        if frames.shape[-2:] != size:
            frames = F.interpolate(frames, size, mode="bilinear", antialias=True, align_corners=False)
        return self.model.preprocessor.normalise(frames.movedim(1, -1))

    def _ratios(self, grid: UnitGrid, tiles: tuple[int, int]) -> Tensor:
        """(1, T) float64: share of a tile's ids to take in each step."""
        patches = self.model.grid
        cells = patches.patches_per_scale[-1]
        share = 1.0 if self.gazing_ratio is None else self.gazing_ratio
        units = max(1, int(share * grid.per_step)) / (tiles[0] * tiles[1])
        ids = min(cells, max(1, ceil(units), round(share * cells)))
        ratios = torch.full((1, grid.steps), (ids + 0.5) / patches.patches_per_frame, dtype=torch.float64)
        if self.first_step:
            ratios[:, 0] = 1.0
        return ratios.clamp(max=1.0)

    def _requirements(self, steps: int) -> Tensor | None:
        if self.task_loss_requirement is None:
            return None
        requirements = torch.full((1, steps), float(self.task_loss_requirement), dtype=torch.float64)
        if self.first_step:
            requirements[:, 0] = -torch.inf  # never met: the first step is seen whole
        return requirements
