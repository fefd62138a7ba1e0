"""Disturbances: what cameras and encoders do to a clip before anybody chooses patches of it.

Noise and compression hide the scene: their pictures are compared with the *clean* frames. Flicker and shake change
the scene itself: their pictures are compared with the disturbed frames. Draws come from a seed and are the same on
every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from autogaze.evaluate.clips import ClipSet

CLEAN = "clean"
CRF = 35  # of the second compression
FLICKER = 0.08  # largest relative change of a frame's brightness
SHAKE_PX = 2  # largest shift of a frame, each way


@dataclass(frozen=True)
class Disturbance:
    """One way to disturb clips."""

    name: str
    apply: Callable[[ClipSet, torch.Generator], Tensor]  # to (N, T, H, W, 3) uint8
    against_clean: bool  # whether pictures are compared with the undisturbed frames


def noise(frames: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise of each pixel and colour.

    Args:
        frames: (..., H, W, 3) uint8.
        sigma: standard deviation, of 255.
        generator: of the draws.
    """
    disturbed = [part.float() + sigma * torch.randn(part.shape, generator=generator) for part in frames.split(1)]
    return torch.cat([part.round().clamp(0, 255).to(torch.uint8) for part in disturbed])


def flicker(frames: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """The brightness of every frame (N, T, H, W, 3) uint8 times its own factor in [1 - share, 1 + share]."""
    factors = 1 + share * (2 * torch.rand(*frames.shape[:2], 1, 1, 1, generator=generator) - 1)
    disturbed = [part.float() * factor for part, factor in zip(frames.split(1), factors.split(1), strict=True)]
    return torch.cat([part.round().clamp(0, 255).to(torch.uint8) for part in disturbed])


def shake(frames: Tensor, most_px: int, generator: torch.Generator) -> Tensor:
    """Every frame (N, T, H, W, 3) uint8 shifted by whole pixels, at most `most_px` each way; borders repeat."""
    clips, count, height, width = frames.shape[:4]
    shifts = torch.randint(0, 2 * most_px + 1, (clips, count, 2), generator=generator).tolist()
    disturbed = torch.empty_like(frames)
    for clip in range(clips):
        pixels = frames[clip].permute(0, 3, 1, 2).float()
        wide = F.pad(pixels, (most_px,) * 4, mode="replicate").to(torch.uint8).permute(0, 2, 3, 1)
        for t, (down, right) in enumerate(shifts[clip]):
            disturbed[clip, t] = wide[t, down : down + height, right : right + width]
    return disturbed


def _noisy(sigma: float) -> Callable[[ClipSet, torch.Generator], Tensor]:
    return lambda clips, generator: noise(clips.frames, sigma, generator)


DISTURBANCES: dict[str, Disturbance] = {
    one.name: one
    for one in (
        Disturbance("noise-8", _noisy(8), True),
        Disturbance("noise-20", _noisy(20), True),
        Disturbance("flicker", lambda clips, generator: flicker(clips.frames, FLICKER, generator), False),
        Disturbance("shake", lambda clips, generator: shake(clips.frames, SHAKE_PX, generator), False),
        Disturbance("h264", lambda clips, generator: clips.compressed(CRF), True),
    )
}


def disturbed(clips: ClipSet, name: str, seed: int = 0) -> ClipSet:
    """The same clips, disturbed.

    Raises:
        ValueError: if there is no disturbance of that name.
    """
    check_disturbances([name])
    frames = DISTURBANCES[name].apply(clips, torch.Generator().manual_seed(seed))
    return replace(clips, frames=frames)


def check_disturbances(names: Sequence[str]) -> None:
    """Raise ValueError at a name that is unknown."""
    unknown = [name for name in names if name not in DISTURBANCES]
    if unknown:
        raise ValueError(f"no disturbance {', '.join(unknown)}; there are {', '.join(DISTURBANCES)}")
