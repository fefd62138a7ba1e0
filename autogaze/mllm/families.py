"""Which video LLMs can be gazed, and which cannot and why: two tables."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import nn

from autogaze.mllm.family import Family


@dataclass(frozen=True)
class Known:
    """A class of models that can be gazed."""

    name: str  # as people say it
    model: str  # class of transformers
    family: str  # module and class
    unit: str
    positions: str  # in the tower


@dataclass(frozen=True)
class Refusal:
    """A model in front of whose tower units cannot be left out, and why."""

    name: str
    models: tuple[str, ...]
    reason: str


_PAIR_14, _PAIR_16 = "28 x 28 px of 2 frames", "32 x 32 px of 2 frames"
_QUARTER, _SIXTEENTH = "28 x 28 px of a frame", "64 x 64 px of a frame"
_ROTARY, _LEARNED, _WINDOWS = "rotary", "learned", "rotary; windows of 112 px"
_BOTH = "learned, interpolated, and rotary"

KNOWN = (
    Known("Qwen2-VL", "Qwen2VLForConditionalGeneration", "qwen.Qwen", _PAIR_14, _ROTARY),
    Known("Qwen2.5-VL", "Qwen2_5_VLForConditionalGeneration", "qwen.WindowedQwen", _PAIR_14, _WINDOWS),
    Known("Qwen3-VL", "Qwen3VLForConditionalGeneration", "qwen.InterpolatedQwen", _PAIR_16, _BOTH),
    Known("Qwen3-VL, experts", "Qwen3VLMoeForConditionalGeneration", "qwen.InterpolatedQwen", _PAIR_16, _BOTH),
    Known("Qwen3.5", "Qwen3_5ForConditionalGeneration", "qwen.InterpolatedQwen", _PAIR_16, _BOTH),
    Known("Qwen3.5, experts", "Qwen3_5MoeForConditionalGeneration", "qwen.InterpolatedQwen", _PAIR_16, _BOTH),
    Known("InternVL3", "InternVLForConditionalGeneration", "framed.InternVL", _QUARTER, _LEARNED),
    Known("SmolVLM2", "SmolVLMForConditionalGeneration", "framed.SmolVLM", _SIXTEENTH, _LEARNED),
    Known("LLaVA-NeXT-Video", "LlavaNextVideoForConditionalGeneration", "framed.LlavaNextVideo", _QUARTER, _LEARNED),
    Known("VideoLLaMA3", "VideoLlama3ForConditionalGeneration", "video_llama.VideoLlama3", _QUARTER, _ROTARY),
)  # fmt: skip

REFUSALS: tuple[Refusal, ...] = ()


def family_of(model: nn.Module, processor: Any) -> Family:
    """The family of a model.

    Raises:
        ValueError: if it is not known, or is one in front of which units cannot be left out; says why.
    """
    name, module = type(model).__name__, type(model).__module__
    for refusal in REFUSALS:
        if name in refusal.models:
            raise ValueError(f"{name} cannot be gazed before its tower: {refusal.reason}; see docs/mllm.md")
    known = next((known for known in KNOWN if known.model == name and module.startswith("transformers.")), None)
    if known is None:
        names = ", ".join(known.name for known in KNOWN)
        raise ValueError(f"GazedVideoLM does not know {module}.{name}; it knows {names}; see docs/mllm.md")
    home, _, kind = known.family.partition(".")
    return getattr(import_module(f"autogaze.mllm.{home}"), kind)(model, processor)
