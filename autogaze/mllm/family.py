"""Families: what GazedVideoLM needs to know of a video LLM, and which ones it knows.

A model is known by its exact class, since a subclass may do anything differently and would give wrong numbers silently.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from autogaze.mllm.gazing import Video
from autogaze.mllm.units import UnitGrid

Inputs = dict[str, Any]  # what a processor returns for a batch of prompts, with one placeholder a step


@dataclass(frozen=True, eq=False)
class Features:
    """Visual tokens of one image or video as the language model takes them."""

    tokens: Tensor  # (N, D)
    deepstack: tuple[Tensor, ...] = ()  # (N, D) each, added in early layers


class Family(ABC):
    """A video LLM in parts: units, text of a step, tower on kept units, positions.

    Args:
        model: the user's `...ForConditionalGeneration`; its own weights are used.
        processor: its processor; a copy is used, so nothing of it changes.
    """

    modality = "video"  # key of the video's tokens in `mm_encoder_outputs`
    reads: dict[str, Any] = {}  # settings of the video processor that the family needs

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model
        self.processor = copy(processor)

    @property
    def tower_dtype(self) -> torch.dtype:
        return next(self.tower.parameters()).dtype

    @property
    @abstractmethod
    def tower(self) -> Any:
        """The vision tower."""

    @abstractmethod
    def step_text(self, video_inputs: Inputs, index: int) -> str:
        """The text that the processor writes for a video if every step gives one token."""

    @abstractmethod
    def videos(self, inputs: Inputs) -> list[Video]:
        """The videos, in the order of the prompts, as the gaze sees them."""

    @abstractmethod
    def encode(self, inputs: Inputs, kept: Sequence[Tensor]) -> list[Features]:
        """Run the tower on kept units.

        Args:
            inputs: with pixels that are neither rescaled nor normalised.
            kept: (steps, per_step) bool on the CPU, of every video.
        """

    @abstractmethod
    def images(self, inputs: Inputs) -> list[Features]:
        """The still images, dense, by the model's own call."""

    @abstractmethod
    def grids(self, inputs: Inputs) -> list[UnitGrid]:
        """The units of every video."""

    def placeholder(self, modality: str | None = None) -> int:
        """Token id that stands for one visual token, of a video by default."""
        return int(getattr(self.model.config, f"{modality or self.modality}_token_id"))

    def step_token(self) -> int:
        """Token id that `step_text` writes for a step, and nothing else does."""
        return self.placeholder()

    def pad_token(self) -> int:
        """Token id that fills shorter prompts of a batch."""
        pad = self.processor.tokenizer.pad_token_id
        return 0 if pad is None else int(pad)

    def positions(self, inputs: Inputs) -> Tensor:
        """Positions of the language model's tokens in dense prompts, on the CPU.

        Args:
            inputs: the processor's, with dense `input_ids` (B, L), `attention_mask` and, if the processor gives it,
                `mm_token_type_ids`, padded.

        Returns:
            (axes, B, L) int64: one axis for plain rotary positions, three for M-RoPE.
        """
        return (inputs["attention_mask"].cumsum(-1) - 1)[None]

    def besides(self, input_ids: Tensor) -> Inputs:
        """Further inputs of the model for the prompt's tokens (B, L)."""
        return {}

    def arrange(self, inputs: Inputs, images: list[Features], videos: list[Features]) -> dict[str, list[Features]]:
        """Visual tokens by modality, each in the order of its placeholders."""
        return {name: parts for name, parts in (("image", images), ("video", videos)) if parts}

    def outputs(self, features: Sequence[Features], modality: str) -> BaseModelOutputWithPooling:
        """The tower's output in the form in which the model takes it; made anew for every call, since beam search
        changes it."""
        tokens: Any = [part.tokens for part in features]  # a list where the type says a tensor: so the models do it
        return BaseModelOutputWithPooling(pooler_output=tokens)

    def normalise(self, pixels: Tensor, settings: Inputs) -> Tensor:
        """Rescale and normalise as the video processor does, here for kept units only.

        Args:
            pixels: (N, 3, ...) 0..255.
            settings: the `VideosKwargs` asked for; what they do not say is the processor's own.
        """
        video_processor = self.processor.video_processor
        names = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
        chosen = {name: settings.get(name, getattr(video_processor, name)) for name in names}
        flat = pixels.flatten(2, -2) if pixels.ndim > 4 else pixels
        return video_processor.rescale_and_normalize(flat, *chosen.values()).view(pixels.shape)
