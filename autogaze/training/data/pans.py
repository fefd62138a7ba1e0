"""Camera pans over photos: clips with known, pure camera motion (the paper's "scanning" data), made on the fly.

The camera is a square window with a centre, a side and an angle. It starts somewhere, drifts at a steady speed with a
little hand shake, may zoom and turn slowly, and turns back at the edge of the photo. Every sixth pan stands still
on average, since a still picture is what a gaze should learn to leave alone.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from autogaze.training.data.augment import without_waiting

STILL = 1 / 6  # probability that the camera does not move


def camera_path(frames: int, height: int, width: int, seed: int) -> Tensor:
    """The camera's windows on a photo.

    Returns:
        (frames, 4) float32: centre x, centre y, side (all in pixels of the photo) and angle (radians); every window
        lies within the photo.
    """
    random = np.random.default_rng(seed)
    short = min(height, width)
    turn = random.uniform(-0.15, 0.15) if random.random() < 0.3 else 0.0
    margin = abs(math.cos(turn)) + abs(math.sin(turn))  # a turned square needs so much more room
    side = random.uniform(0.35, 0.85) * short / margin
    zoom = random.uniform(0.985, 1.015) if random.random() < 0.4 else 1.0
    sides = np.minimum(side * zoom ** np.arange(frames), short / margin)
    still = random.random() < STILL
    speed = 0.0 if still else math.exp(random.uniform(math.log(0.004), math.log(0.08))) * side
    direction = random.uniform(0, 2 * math.pi)
    step = np.array([math.cos(direction), math.sin(direction)]) * speed
    shake = random.normal(0, 0.0 if still else random.choice([0.0, 0.003]), (frames, 2)) * side
    room = sides[:, None] * margin / 2
    low, high = room, np.array([width, height]) - room
    start = random.uniform(low[0], np.maximum(low[0], high[0]))
    centre = start + step * np.arange(frames)[:, None] + shake
    span = np.maximum(high - low, 1e-6)
    phase = np.mod(centre - low, 2 * span)
    centre = low + np.where(phase > span, 2 * span - phase, phase)  # turns back at the edge
    if still:
        centre, sides = np.repeat(centre[:1], frames, 0), np.repeat(sides[:1], frames)
    angles = np.full(frames, turn) * (1 if still else np.linspace(0, 1, frames))
    return torch.from_numpy(np.concatenate([centre, sides[:, None], angles[:, None]], 1)).float()


def render_pan(photo: Tensor, frames: int, size: int, seed: int) -> Tensor:
    """A pan over a photo.

    Args:
        photo: (H, W, 3) uint8, on any device.
        frames: how many.
        size: pixels a side.
        seed: of the camera's path.

    Returns:
        (frames, size, size, 3) uint8.
    """
    height, width = photo.shape[:2]
    path = camera_path(frames, height, width, seed)
    image = photo.permute(2, 0, 1)[None].float()
    shrink = float(path[:, 2].max()) / size
    if shrink > 1:  # bilinear sampling alone would alias
        image = F.interpolate(
            image, (max(1, round(height / shrink)), max(1, round(width / shrink))), mode="bilinear", antialias=True
        )
    x, y, side, angle = without_waiting(path, photo.device).unbind(1)
    cos, sin = angle.cos() * side, angle.sin() * side
    theta = torch.stack(
        [
            torch.stack([cos / width, -sin / width, 2 * x / width - 1], -1),
            torch.stack([sin / height, cos / height, 2 * y / height - 1], -1),
        ],
        dim=1,
    )
    grid = F.affine_grid(theta, [frames, 3, size, size], align_corners=False)
    pan = F.grid_sample(
        image.expand(frames, -1, -1, -1), grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return pan.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
