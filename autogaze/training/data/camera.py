"""Effects of a camera on a scene: noise of its sensor, brightness that flickers, hands that shake.

Flicker and shake are part of what is seen: the truth has them too. Noise is not: a model that is shown noisy frames is
judged by how near its picture comes to the clean ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autogaze.training.data.clip import ClipRecipe

MOST_NOISE, MOST_FLICKER, MOST_SHAKE = 26.0, 0.1, 2  # of 255 shades; share of brightness; pixels


def draw_camera(probability: float, random: np.random.Generator) -> dict[str, Any]:
    """Fields of a recipe: each disturbance with this probability, none at 0 (and then nothing is drawn)."""
    if not probability:
        return {}
    noisy, flickers, shakes = random.random(3) < probability
    return {
        "noise": float(random.uniform(0, MOST_NOISE)) if noisy else 0.0,
        "flicker": float(random.uniform(0, MOST_FLICKER)) if flickers else 0.0,
        "shake": int(random.integers(1, MOST_SHAKE + 1)) if shakes else 0,
        "camera_seed": int(random.integers(2**31)),
    }


def film(video: Tensor, recipes: Sequence[ClipRecipe]) -> tuple[Tensor, Tensor | None]:
    """Clips as a camera would have given them.

    Args:
        video: (B, T, 3, H, W) float in [-1, 1]; not changed.
        recipes: one a clip.

    Returns:
        the disturbed clips, in whole shades where there is noise; and the truth, None where no clip has noise.
    """
    if not any(recipe.noise or recipe.flicker or recipe.shake for recipe in recipes):
        return video, None
    truth = torch.stack([_moved(clip, recipe) for clip, recipe in zip(video, recipes, strict=True)])
    if not any(recipe.noise for recipe in recipes):
        return truth, None
    noisy = [_noisy(clip, recipe) if recipe.noise else clip for clip, recipe in zip(truth, recipes, strict=True)]
    return torch.stack(noisy), truth


def _moved(clip: Tensor, recipe: ClipRecipe) -> Tensor:
    """Flicker and shake of one clip (T, 3, H, W); what comes in at an edge repeats it."""
    random = np.random.default_rng([recipe.camera_seed, 0])
    frames = len(clip)
    if recipe.flicker:
        gain = torch.as_tensor(1 + recipe.flicker * random.uniform(-1, 1, frames), dtype=clip.dtype).to(clip.device)
        clip = ((clip + 1) * gain[:, None, None, None] - 1).clamp(-1, 1)
    if recipe.shake:
        most, (height, width) = recipe.shake, clip.shape[-2:]
        wide = torch.nn.functional.pad(clip, (most,) * 4, mode="replicate")
        corners = random.integers(0, 2 * most + 1, (frames, 2))
        clip = torch.stack([wide[t, :, y : y + height, x : x + width] for t, (y, x) in enumerate(corners)])
    return clip


def _noisy(clip: Tensor, recipe: ClipRecipe) -> Tensor:
    generator = torch.Generator(clip.device).manual_seed(recipe.camera_seed)
    noise = torch.randn(clip.shape, generator=generator, device=clip.device, dtype=clip.dtype)
    return ((clip + 1) * 127.5 + recipe.noise * noise).round().clamp(0, 255) / 127.5 - 1
