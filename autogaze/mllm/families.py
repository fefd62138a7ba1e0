"""Video LLMs that can be gazed, and those that cannot and why: two tables."""

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
    positions: str  # in the tower


@dataclass(frozen=True)
class Refusal:
    """Models in front of whose towers units are not left out, and why."""

    name: str  # as people say it
    models: tuple[str, ...]  # classes of transformers
    reason: str
    possible: bool = False  # there are whole units, but no family is written


_ROTARY, _LEARNED, _WINDOWS = "rotary", "learned", "rotary; windows of 112 px"
_BOTH, _AXES = "learned, interpolated, and rotary", "learned, by row and column, and rotary"

KNOWN = (
    Known("Qwen2-VL", "Qwen2VLForConditionalGeneration", "qwen.Qwen", _ROTARY),
    Known("Qwen2.5-VL", "Qwen2_5_VLForConditionalGeneration", "qwen.WindowedQwen", _WINDOWS),
    Known("Qwen3-VL", "Qwen3VLForConditionalGeneration", "qwen.InterpolatedQwen", _BOTH),
    Known("Qwen3-VL, experts", "Qwen3VLMoeForConditionalGeneration", "qwen.InterpolatedQwen", _BOTH),
    Known("Qwen3.5", "Qwen3_5ForConditionalGeneration", "qwen.InterpolatedQwen", _BOTH),
    Known("Qwen3.5, experts", "Qwen3_5MoeForConditionalGeneration", "qwen.InterpolatedQwen", _BOTH),
    Known("InternVL3", "InternVLForConditionalGeneration", "framed.InternVL", _LEARNED),
    Known("SmolVLM2", "SmolVLMForConditionalGeneration", "framed.SmolVLM", _LEARNED),
    Known("LLaVA-NeXT-Video", "LlavaNextVideoForConditionalGeneration", "framed.LlavaNextVideo", _LEARNED),
    Known("Gemma 4", "Gemma4ForConditionalGeneration", "gemma.Gemma4", _AXES),
    Known("VideoLLaMA3", "VideoLlama3ForConditionalGeneration", "video_llama.VideoLlama3", _ROTARY),
)  # fmt: skip

_NO_VIDEO = "its processor takes no video, only pictures, which are left as they are"

REFUSALS = (
    Refusal(
        "LLaVA-OneVision",
        ("LlavaOnevisionForConditionalGeneration",),
        "it shrinks 27 x 27 patches to 14 x 14 tokens by bilinear interpolation, so some tokens share patches: not "
        "whole units",
    ),
    Refusal(
        "InstructBLIP-Video",
        ("InstructBlipVideoForConditionalGeneration",),
        "queries read all patches of a frame, so none of its tokens belongs to a part of the frame",
    ),
    Refusal(
        "Gemma 3, Gemma 3n, PaliGemma",
        ("Gemma3ForConditionalGeneration", "Gemma3nForConditionalGeneration", "PaliGemmaForConditionalGeneration"),
        _NO_VIDEO,
    ),
    Refusal(
        "LLaVA, LLaVA-NeXT, Idefics, Aria, Ovis2, Cohere's, Llama 3.2",
        (
            "LlavaForConditionalGeneration",
            "LlavaNextForConditionalGeneration",
            "Idefics2ForConditionalGeneration",
            "Idefics3ForConditionalGeneration",
            "AriaForConditionalGeneration",
            "Ovis2ForConditionalGeneration",
            "Cohere2VisionForConditionalGeneration",
            "MllamaForConditionalGeneration",
        ),
        _NO_VIDEO,
    ),
    Refusal(
        "MiniCPM-V",
        ("MiniCPMV4_6ForConditionalGeneration", "MiniCPMV4_7ForConditionalGeneration"),
        "a layer within its tower joins windows of 2 x 2 patches; its units are 4 x 4 patches",
        possible=True,
    ),
    Refusal(
        "Gemma 4 without a tower",
        ("Gemma4UnifiedForConditionalGeneration",),
        "there is no vision tower to save: its language model reads patches; its units are what a token reads",
        possible=True,
    ),
    Refusal(
        "Video-LLaVA",
        ("VideoLlavaForConditionalGeneration",),
        "class tokens of frames stand among its tokens; its units are single patches",
        possible=True,
    ),
    Refusal(
        "Molmo 2",
        ("Molmo2ForConditionalGeneration",),
        "attention joins the patches of a token; its units are what a token reads",
        possible=True,
    ),
    Refusal(
        "Perception LM",
        ("PerceptionLMForConditionalGeneration",),
        "its tower is timm's; its units are averages of squares of patches",
        possible=True,
    ),
    Refusal(
        "GLM-4.1V",
        ("Glm4vForConditionalGeneration", "Glm4vMoeForConditionalGeneration"),
        "a convolution joins its patches; its units are 2 x 2 patches of two frames",
        possible=True,
    ),
    Refusal(
        "Qwen2.5-Omni, Qwen3-Omni",
        ("Qwen2_5OmniThinkerForConditionalGeneration", "Qwen3OmniMoeThinkerForConditionalGeneration"),
        "sound stands between its frames; its units are Qwen's",
        possible=True,
    ),
)


def family_of(model: nn.Module, processor: Any) -> Family:
    """The family of a model.

    Raises:
        ValueError: if it is not known, or is one of `REFUSALS`; says why.
    """
    name, module = type(model).__name__, type(model).__module__
    for refusal in REFUSALS:
        if name in refusal.models:
            verb = "is not gazed yet" if refusal.possible else "cannot be gazed"
            raise ValueError(f"{name} {verb} before its tower: {refusal.reason}; see docs/mllm.md")
    known = next((known for known in KNOWN if known.model == name and module.startswith("transformers.")), None)
    if known is None:
        names = ", ".join(known.name for known in KNOWN)
        raise ValueError(f"GazedVideoLM does not know {module}.{name}; it knows {names}; see docs/mllm.md")
    home, _, kind = known.family.partition(".")
    return getattr(import_module(f"autogaze.mllm.{home}"), kind)(model, processor)
