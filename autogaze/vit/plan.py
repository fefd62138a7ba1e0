"""Which patches a ViT should get, how they attend, and how a clip's budget is spread over its frames.

A frozen ViT has never seen coarse patches, nor a frame of a few tokens: given those, it hardly knows a clip again. What
works is to show it the finest scale alone, the first frame in full, then what changed, with attention that remembers
(`attention="memory"`). The budget is the clip's: 26 patches a frame for 16 frames of 14 x 14 cells are 196 in the first
frame and 14 or 15 in each of the others. Figures: docs/adapt.md, `python -m benchmarks.fidelity`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from autogaze.core.gaze import Gaze
from autogaze.core.grid import PatchGrid
from autogaze.decoding.request import make_request
from autogaze.model import AutoGaze
from autogaze.selectors import make_selector

Chooser = Callable[[Tensor, Tensor, "Plan"], Gaze]  # (video (B, T, 3, H, W) in -1..1, ratios (B, T), plan)


@dataclass(frozen=True)
class Plan:
    """How a ViT gets its patches."""

    attention: str = "memory"
    finest: bool = True  # patches of the finest scale alone
    first: bool = True  # the first frame in full, as far as the clip's budget goes
    reason: str = ""

    def counts(self, cells: int, frames: int, per_frame: float) -> list[int]:
        """Patches to spend in each frame of a clip.

        Args:
            cells: of the finest scale.
            frames: of the clip.
            per_frame: mean number of patches a frame.
        """
        total = round(per_frame * frames)
        first = min(cells, total) if self.first else round(total / frames)
        rest = total - first
        ends = [round(rest * t / max(1, frames - 1)) for t in range(frames)]
        return [first, *(min(cells, b - a) for a, b in zip(ends, ends[1:], strict=False))]

    def ratios(self, grid: PatchGrid, frames: int, per_frame: float) -> Tensor:
        """(T,) float64 gazing ratios for `generate` and selectors, on the grid that they choose on."""
        counts = self.counts(grid.patches_per_scale[-1], frames, per_frame)
        spent = torch.tensor(counts, dtype=torch.float64)
        return ((spent + 0.5).mul(spent > 0) / grid.patches_per_frame).clamp(max=1.0)

    def grid(self, grid: PatchGrid) -> PatchGrid:
        """The grid that selectors choose on."""
        return PatchGrid(grid.scales[-1:], grid.patch_size, grid.frame_size) if self.finest else grid


FROZEN = Plan(
    reason="a ViT that was not trained on gazed patches knows neither coarse patches nor frames of a few tokens: it "
    "gets the finest scale alone, the first frame in full, then what changed, and remembers the rest"
)
FRAME = Plan("frame", False, False, "every frame for itself, in all scales, as published")


def adapted_plan(attention: str) -> Plan:
    """What a ViT is adapted to, and then gets: with memory the same as a frozen one, else patches of all scales."""
    if attention == "memory":
        return Plan(reason="this ViT was adapted to patches of the finest scale, with memory")
    return Plan(attention, False, False, f"this ViT was adapted to patches of all scales with {attention} attention")


def choose(chooser: AutoGaze | str, video: Tensor, plan: Plan, per_frame: float) -> Gaze:
    """Patches for a ViT by a plan.

    Args:
        chooser: a model, or the name of a selector.
        video: (B, T, 3, H, W) float in -1..1, as `AutoGaze.preprocessor` gives it.
        plan: what is asked for.
        per_frame: mean number of patches a frame.
    """
    frames = video.shape[1]
    if isinstance(chooser, str):
        grid = plan.grid(PatchGrid())
        return make_selector(chooser, grid)(video, plan.ratios(grid, frames, per_frame).tolist())
    grid = chooser.grid
    scales = grid.scales[-1:] if plan.finest else None
    ratios = plan.ratios(grid, frames, per_frame).tolist()
    gaze = chooser.decode(video, make_request(grid, len(video), frames, ratios, scales=scales))
    return only_finest(gaze) if plan.finest else gaze


def only_finest(gaze: Gaze) -> Gaze:
    """A gaze on the finest scale of its grid alone; patches of other scales are left out."""
    grid, start = gaze.grid, gaze.grid.offsets[-1]
    chosen = gaze.chosen & (gaze.ids >= start)
    ids = (gaze.ids - start).where(chosen, 0)
    return Gaze(ids, chosen, PatchGrid(grid.scales[-1:], grid.patch_size, grid.frame_size))
