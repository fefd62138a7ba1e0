"""A training clip: the pixels, how they were made, and what is known about where to look in them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from autogaze.core.gaze import Gaze


@dataclass(frozen=True)
class ClipRecipe:
    """One clip of one file (or of a rendered scene); the same recipe always gives the same pixels."""

    kind: str  # "video" | "photo" | "scene"
    name: str  # of the file; the scene's seed for a scene
    frames: int
    start: int = 0  # first frame of the file
    stride: int = 1  # frames of the file from one frame to the next
    reverse: bool = False
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)  # top, left, height, width, as shares of the frame
    pan_seed: int = 0  # of the camera's path over a photo
    flip: bool = False
    brightness: float = 0.0  # added, in the range -1..1 of the pixels
    contrast: float = 1.0  # factor about the clip's mean
    saturation: float = 1.0  # factor about grey
    noise: float = 0.0  # standard deviation of the sensor's noise, of 255 shades
    flicker: float = 0.0  # largest change of a frame's brightness, as a share
    shake: int = 0  # largest shift of a frame, pixels
    camera_seed: int = 0  # of the three

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ClipRecipe:
        data = json.loads(text)
        return cls(**{**data, "box": tuple(data["box"])})


@dataclass(frozen=True, eq=False)
class Clip:
    """A batch of clips, ready for a model."""

    video: Tensor  # (B, T, 3, H, W) float32, preprocessed
    recipes: tuple[ClipRecipe, ...]  # how each was made
    gaze: Gaze | None = None  # where to look, for labelled clips: slots in the order of choice
    task_loss: Tensor | None = None  # (B, T, K) float32, reconstruction loss after each choice; NaN where unknown
    truth: Tensor | None = None  # (B, T, 3, H, W) the video without the sensor's noise; None: it has none

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(recipe.name for recipe in self.recipes)

    def __len__(self) -> int:
        return len(self.recipes)

    def to(self, device: torch.device | str, **_: object) -> Clip:
        """Move to a device like `Tensor.to`; Lightning uses it to move a batch to its device."""
        return replace(
            self,
            video=self.video.to(device),
            truth=None if self.truth is None else self.truth.to(device),
            gaze=None if self.gaze is None else self.gaze.to(device),
            task_loss=None if self.task_loss is None else self.task_loss.to(device),
        )
