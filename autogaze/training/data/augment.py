"""Cutting a clip from a file: a recipe that rebuilds it to the pixel, and the pixels' way from it.

Every frame of a clip gets the same crop, flip, colour and time step; what a camera does to single frames is in
camera.py. A recipe is a pure function of (seed, epoch,
index), and the pixels are a pure function of recipe and file: two runs, or a run that was resumed, see the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from autogaze.training.data.camera import draw_camera
from autogaze.training.data.clip import ClipRecipe
from autogaze.training.data.index import ClipFile


@dataclass(frozen=True)
class Augmentation:
    """Ranges of random variation, the same for all frames of a clip."""

    smallest_crop: float = 0.5  # share of the frame's shorter side
    flip: float = 0.5  # probability of a mirror image
    reverse: float = 0.1  # probability of running backwards
    longest_stride: int = 4  # frames from one frame of the clip to the next: 1 to this
    colour: float = 0.2  # largest change of brightness, contrast and saturation
    camera: float = 0.0  # probability of noise, of flicker and of shake, which differ from frame to frame

    def __post_init__(self) -> None:
        if not 0 < self.smallest_crop <= 1 or self.longest_stride < 1 or not 0 <= self.colour < 1:
            raise ValueError(f"need 0 < smallest_crop <= 1, longest_stride >= 1 and 0 <= colour < 1, got {self}")
        if not 0 <= self.camera <= 1:
            raise ValueError(f"camera is a probability, got {self.camera}")


def random_stream(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The random numbers of one clip of one epoch."""
    return np.random.default_rng([seed, epoch, index])


@lru_cache(maxsize=8)
def shuffled(seed: int, epoch: int, turn: int, count: int) -> np.ndarray:
    """Order in which `count` things are taken in one of an epoch's turns through them; every turn has its own."""
    return random_stream(seed, epoch, 2**40 + turn).permutation(count)


def video_recipe(file: ClipFile, frames: int, augmentation: Augmentation, random: np.random.Generator) -> ClipRecipe:
    """A random cut of a video."""
    longest = max(1, min(augmentation.longest_stride, (file.frames - 1) // max(1, frames - 1)))
    stride = int(random.integers(1, longest + 1))
    start = int(random.integers(0, max(1, file.frames - (frames - 1) * stride)))
    return ClipRecipe(
        "video",
        file.name,
        frames,
        start,
        stride,
        bool(random.random() < augmentation.reverse),
        _box(file, augmentation, random),
        **_look(augmentation, random),
    )


def pan_recipe(file: ClipFile, frames: int, augmentation: Augmentation, random: np.random.Generator) -> ClipRecipe:
    """A random camera path over a photo."""
    return ClipRecipe("photo", file.name, frames, pan_seed=int(random.integers(2**31)), **_look(augmentation, random))


def scene_recipe(frames: int, augmentation: Augmentation, random: np.random.Generator) -> ClipRecipe:
    """A scene that the project renders."""
    return ClipRecipe("scene", str(int(random.integers(2**31))), frames, **_look(augmentation, random))


def plain_recipe(file: ClipFile, frames: int) -> ClipRecipe:
    """Frames spread evenly over a whole video, as evaluation takes them; or an unchanged pan: for validation."""
    if file.kind == "photo":
        return ClipRecipe("photo", file.name, frames, pan_seed=int(file.hash[:7], 16))
    stride = max(1, (file.frames - 1) // max(1, frames - 1))
    return ClipRecipe("video", file.name, frames, max(0, (file.frames - 1 - (frames - 1) * stride) // 2), stride)


def _box(file: ClipFile, augmentation: Augmentation, random: np.random.Generator) -> tuple[float, float, float, float]:
    """A crop between a square and the whole frame (which is squeezed, as `Preprocessor` does)."""
    share = random.uniform(augmentation.smallest_crop, 1.0)
    square = min(file.width, file.height) * share
    wide = random.random()
    height = (square + wide * (file.height * share - square)) / file.height
    width = (square + wide * (file.width * share - square)) / file.width
    return (random.uniform(0, 1 - height), random.uniform(0, 1 - width), height, width)


def _look(augmentation: Augmentation, random: np.random.Generator) -> dict[str, Any]:
    brightness, contrast, saturation = random.uniform(-1, 1, 3) * augmentation.colour
    return {
        "flip": bool(random.random() < augmentation.flip),
        "brightness": float(brightness),
        "contrast": float(1 + contrast),
        "saturation": float(1 + saturation),
        **draw_camera(augmentation.camera, random),
    }


def without_waiting(values: Tensor, device: torch.device) -> Tensor:
    """Small host values on a device; an ordinary copy would wait until the device has done all its work."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def pick_frames(video: Tensor, recipe: ClipRecipe) -> Tensor:
    """The frames (T, ...) of a whole video that a recipe asks for, as a slice where the video is long enough."""
    stop = recipe.start + (recipe.frames - 1) * recipe.stride + 1
    if stop > len(video):
        return video[frame_indices(recipe, len(video))]
    frames = video[recipe.start : stop : recipe.stride]
    return frames.flip(0) if recipe.reverse else frames


def frame_indices(recipe: ClipRecipe, available: int) -> list[int]:
    """Frames of the file that make the clip; a file that is too short rests on its last frame."""
    indices = [min(recipe.start + t * recipe.stride, available - 1) for t in range(recipe.frames)]
    return indices[::-1] if recipe.reverse else indices


def crop(frames: Tensor, box: tuple[float, float, float, float], size: int) -> Tensor:
    """Cut a box out of frames and resize it, antialiased.

    Args:
        frames: (T, H, W, 3) uint8.
        box: top, left, height and width as shares of the frame.
        size: pixels a side.

    Returns:
        (T, size, size, 3) uint8.
    """
    height, width = frames.shape[1:3]
    top, left = round(box[0] * height), round(box[1] * width)
    bottom, right = max(top + 1, round((box[0] + box[2]) * height)), max(left + 1, round((box[1] + box[3]) * width))
    part = frames[:, top:bottom, left:right].permute(0, 3, 1, 2).float()
    part = F.interpolate(part, (size, size), mode="bilinear", antialias=True)
    return part.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def apply_look(video: Tensor, recipes: list[ClipRecipe] | tuple[ClipRecipe, ...]) -> Tensor:
    """Flip and colour a batch of clips (B, T, 3, H, W) in -1..1, where they stay."""
    columns = torch.tensor([[r.flip, r.brightness, r.contrast, r.saturation] for r in recipes], dtype=video.dtype)
    flip, brightness, contrast, saturation = without_waiting(columns, video.device).T.view(4, -1, 1, 1, 1, 1)
    video = video.flip(-1).where(flip > 0, video)
    video = torch.lerp(video.mean(2, keepdim=True), video, saturation)
    video = torch.lerp(video.mean((1, 2, 3, 4), keepdim=True), video, contrast)
    return (video + brightness).clamp(-1, 1)
