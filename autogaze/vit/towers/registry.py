"""ViTs that can be gazed, and why others cannot.

A new family of timm or transformers is a tower in `timm` or `hf_families` and its line in `TOWERS` there.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from autogaze.vit.towers.hf_families import TOWERS as HF_TOWERS
from autogaze.vit.towers.hf_families import tower_of_hf
from autogaze.vit.towers.timm import TOWERS as TIMM_TOWERS
from autogaze.vit.towers.tower import Tower
from autogaze.vit.towers.wrapped import inner, plain_class


@dataclass(frozen=True)
class Refusal:
    """A model that patches cannot be left out of, and why."""

    name: str
    classes: tuple[str, ...]
    reason: str
    instead: str


_MERGES = "it merges neighbouring patches between stages, so every patch needs all its neighbours"
_CROP = "input selection only: crop `gaze.boxes()` or drop frames without a choice"

REFUSALS = (
    Refusal(
        "Swin (timm, HF)",
        ("SwinTransformer", "SwinTransformerV2", "SwinTransformerV2Cr", "SwinModel", "Swinv2Model"),
        "it attends inside fixed windows and " + _MERGES[3:],
        _CROP,
    ),
    Refusal(
        "ConvNeXt, ResNet and other convolutions",
        ("ConvNeXt", "ConvNextModel", "ConvNextV2Model", "ResNet", "ResNetModel", "EfficientNet"),
        "a convolution needs whole neighbourhoods of pixels",
        _CROP,
    ),
    Refusal(
        "Hiera, MViT, PVT and other pyramids",
        (
            "Hiera",
            "HieraModel",
            "MultiScaleVit",
            "PyramidVisionTransformerV2",
            "PvtModel",
            "MaxxVit",
            "Xcit",
            "FastVit",
        ),
        _MERGES,
        _CROP,
    ),
    Refusal(
        "Qwen2-VL, Qwen2.5-VL, Qwen3-VL vision towers",
        (
            "Qwen2VisionTransformerPretrainedModel",
            "Qwen2VLModel",
            "Qwen2VLForConditionalGeneration",
            "Qwen2_5_VLModel",
            "Qwen2_5_VLForConditionalGeneration",
            "Qwen2_5_VisionTransformerPretrainedModel",
            "Qwen3VLModel",
            "Qwen3VLForConditionalGeneration",
            "Qwen3VLVisionModel",
            "Qwen3VLMoeVisionModel",
            "Qwen3VLMoeForConditionalGeneration",
        ),
        "its merger joins every 2 x 2 patches into one language token and pairs of frames share a patch, so "
        "single patches cannot be left out",
        "whole units with `autogaze.mllm.GazedVideoLM` (docs/mllm.md)",
    ),
    Refusal(
        "SAM (timm, HF)",
        ("VisionTransformerSAM", "SamVisionEncoder", "SamVisionModel"),
        "it attends inside fixed windows with relative positions over the whole map",
        _CROP,
    ),
    Refusal(
        "BEiT and relative-position ViTs",
        ("Beit", "BeitModel", "Data2VecVisionModel", "VisionTransformerRelPos"),
        "its relative position bias is a table over one scale of patches",
        _CROP,
    ),
    Refusal(
        "timm's DeiT with a distillation token, CaiT",
        ("VisionTransformerDistilled", "Cait"),
        "it has two heads or class attention that this package does not know",
        _CROP,
    ),
)


def tower_of(model: nn.Module) -> Tower:
    """The tower of a model, which may be compiled, data parallel, adapted by PEFT, or carry its tower inside.

    Raises:
        ValueError: if the model's family is not known, or is one from which patches cannot be left out; says why.
    """
    model = inner(model)
    kind = plain_class(model)
    name, module = kind.__name__, kind.__module__
    for refusal in REFUSALS:
        if name in refusal.classes:
            raise ValueError(
                f"{name} cannot be gazed: {refusal.reason}. What works: {refusal.instead}; see docs/vit-support.md"
            )
    if module.startswith("timm.") and name in TIMM_TOWERS:
        return TIMM_TOWERS[name](model)
    if module.startswith("transformers.") and (tower := tower_of_hf(model)) is not None:
        return tower
    families = ", ".join(name.removesuffix("Model") for name in HF_TOWERS if name.endswith("Model"))
    raise ValueError(
        f"GazedViT does not know {module}.{name}; it knows timm's {', '.join(TIMM_TOWERS)} and transformers' "
        f"{families}; see docs/vit-support.md"
    )
