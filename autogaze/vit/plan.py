"""Plans: the patches that a ViT should get, how they attend, and how a clip's budget is spread over its frames.

A frozen ViT has never seen coarse patches, nor a frame of a few tokens: given those, it hardly knows a clip again. What
works is to show it the finest scale alone, the first frame in full, then what changed, with attention that remembers
(`attention="memory"`). The budget is the clip's: 26 patches a frame for 16 frames of 14 x 14 cells are 196 in the first
frame and 14 or 15 in each of the others. Figures: docs/adapt.md, `python -m benchmarks.fidelity`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from autogaze.core.checks import check_options
from autogaze.core.gaze import Gaze
from autogaze.core.grid import PatchGrid
from autogaze.decoding.clip import decode_clip
from autogaze.decoding.request import make_request
from autogaze.model import AutoGaze
from autogaze.selectors import make_selector
from autogaze.vit.packing import Attention


@dataclass(frozen=True)
class Plan:
    """The way in which a ViT gets its patches."""

    attention: Attention = "memory"
    finest: bool = True  # patches of the finest scale alone
    whole: Literal["first", "spread", "none"] = "first"  # frames in full; "spread": as many as the budget has room for
    reason: str = ""

    def __post_init__(self) -> None:
        check_options(self)

    def keys(self, cells: int, frames: int, per_frame: float) -> list[int]:
        """Frames that are looked at in full, or as far as the budget goes."""
        if self.whole == "none" or frames == 0:
            return []
        if self.whole == "first":
            return [0]
        count = min(frames, max(1, round(per_frame * frames) // cells))
        return [min(frames - 1, round((k + 0.5) * frames / count - 0.5)) for k in range(count)]

    def counts(self, cells: int, frames: int, per_frame: float) -> list[int]:
        """Patches to spend in each frame of a clip.

        Args:
            cells: of the finest scale.
            frames: of the clip.
            per_frame: mean number of patches a frame.
        """
        total = round(per_frame * frames)
        keys = self.keys(cells, frames, per_frame)
        full = min(cells, total)
        others = [t for t in range(frames) if t not in keys]
        rest = total - full * len(keys)
        ends = [round(rest * k / max(1, len(others))) for k in range(len(others) + 1)]
        counts = dict.fromkeys(keys, full) | {
            t: min(cells, b - a) for t, a, b in zip(others, ends, ends[1:], strict=False)
        }
        return [counts[t] for t in range(frames)]

    def grid(self, grid: PatchGrid) -> PatchGrid:
        """The grid that selectors choose on."""
        return PatchGrid(grid.scales[-1:], grid.patch_size, grid.frame_size) if self.finest else grid


FROZEN = Plan(
    reason="a ViT that was not trained on gazed patches knows neither coarse patches nor frames of a few tokens: it "
    "gets the finest scale alone, the first frame in full, then what changed, and remembers the rest"
)
CLIP = Plan(
    "nearest",
    whole="spread",
    reason="where a clip is there as a whole, frames in full spread over it, and changes between them, say more of it "
    "than one frame in full and more changes; every frame sees the look at each cell that is nearest in time",
)


def adapted_plan(attention: Attention) -> Plan:
    """The plan that a ViT is adapted to and then gets: with memory that of a frozen one, else all scales."""
    if attention == "memory":
        return Plan(reason="this ViT was adapted to patches of the finest scale, with memory")
    if attention == "nearest":
        return replace(
            CLIP, reason="this ViT was adapted to frames in full, and changes, with the look nearest in time"
        )
    return Plan(attention, False, "none", f"this ViT was adapted to patches of all scales with {attention} attention")


def choose(chooser: AutoGaze | str, video: Tensor, plan: Plan, per_frame: float) -> Gaze:
    """Patches for a ViT by a plan.

    Args:
        chooser: a model, or the name of a selector.
        video: (B, T, 3, H, W) float in -1..1, as `AutoGaze.preprocessor` gives it.
        plan: what is asked for.
        per_frame: mean number of patches a frame.

    Returns:
        (B, T, K) on the chooser's grid, or with `plan.finest` on the finest scale of it.
    """
    frames = video.shape[1]
    own = PatchGrid() if isinstance(chooser, str) else chooser.grid
    grid = plan.grid(own)
    cells = grid.patches_per_scale[-1]
    counts = plan.counts(cells, frames, per_frame)
    if plan.whole != "spread":
        return _chosen(chooser, video, plan, counts)
    keys = plan.keys(cells, frames, per_frame)
    parts: dict[int, Gaze] = {}
    for run in _runs(keys, frames):  # each begins with a frame in full, and goes away from it in time
        of_run = [counts[t] for t in run]
        part = _chosen(chooser, video[:, run], plan, of_run if sum(of_run[1:]) else of_run[:1])
        parts |= {
            t: Gaze(part.ids[:, k : k + 1], part.chosen[:, k : k + 1], grid)
            for k, t in enumerate(run[: part.ids.shape[1]])
        }
    one = parts[keys[0]]
    nothing = Gaze(one.ids[..., :0], one.chosen[..., :0], grid)
    return Gaze.join([parts.get(t, nothing) for t in range(frames)])


def _runs(keys: list[int], frames: int) -> list[list[int]]:
    """From every frame in full to half the way to the next one, forwards and backwards in time."""
    ends = [0, *((a + b) // 2 + 1 for a, b in zip(keys, keys[1:], strict=False)), frames]
    forwards = [list(range(key, end)) for key, end in zip(keys, ends[1:], strict=True)]
    backwards = [list(range(key, start - 1, -1)) for key, start in zip(keys, ends, strict=False)]
    return [run for run in forwards + backwards if len(run) > 1 or run in forwards]


def _chosen(chooser: AutoGaze | str, video: Tensor, plan: Plan, counts: list[int]) -> Gaze:
    """So many patches in each of the first frames, on the plan's grid."""
    video = video[:, : len(counts)]
    own = PatchGrid() if isinstance(chooser, str) else chooser.grid
    grid = plan.grid(own)
    if plan.finest and len(counts) == 1 and counts[0] == grid.patches_per_frame:  # nothing to choose
        ids = torch.arange(counts[0], device=video.device).expand(len(video), 1, -1)
        return Gaze(ids, torch.ones_like(ids, dtype=torch.bool), grid)
    if isinstance(chooser, str):
        return make_selector(chooser, grid)(video, _ratios(counts, grid))
    scales = own.scales[-1:] if plan.finest else None
    request = make_request(own, len(video), len(counts), _ratios(counts, own), scales=scales)
    gaze = decode_clip(chooser, video, request)
    return only_finest(gaze) if plan.finest else gaze


def _ratios(counts: list[int], grid: PatchGrid) -> Tensor:
    """(1, T) gazing ratios of so many patches."""
    spent = torch.tensor(counts, dtype=torch.float64)
    return ((spent + 0.5).mul(spent > 0) / grid.patches_per_frame).clamp(max=1.0)[None]


def only_finest(gaze: Gaze) -> Gaze:
    """A gaze on the finest scale of its grid alone; patches of other scales are left out."""
    grid, start = gaze.grid, gaze.grid.offsets[-1]
    chosen = gaze.chosen & (gaze.ids >= start)
    ids = (gaze.ids - start).where(chosen, 0)
    return Gaze(ids, chosen, PatchGrid(grid.scales[-1:], grid.patch_size, grid.frame_size))
