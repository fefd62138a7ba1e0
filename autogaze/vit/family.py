"""Families: what GazedViT needs to know of a ViT, and which ViTs it knows.

A tower is a view of a user's model, not a copy: it uses the model's own weights, so training trains the model. A model
is known by its exact class: a subclass may do anything differently, and would give wrong numbers silently.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from autogaze.core.grid import PatchGrid
from autogaze.vit.features import PoolInput
from autogaze.vit.wrapped import Foreign, Part, check_part, inner, plain_class

Attend = Callable[..., Tensor]  # (q, k, v, scale=None), each (M, heads, head size) -> the same shape


class Tower(ABC):
    """A ViT in parts: embed patches, add positions, run the blocks on packed rows, pool.

    Parts are looked up when they are used, so that a layer which is swapped later takes part.
    """

    root: Foreign  # the ViT itself, which may stand inside the user's model
    library: str  # "timm" or "transformers"
    patch_size: int  # pixels
    prefix_tokens: int  # R, class and register tokens in front of a run
    native_side: tuple[int, int]  # rows and columns of the grid that the position embedding was trained on
    attention_dropout: float  # packed attention has none, so training refuses it
    run_block: Callable[..., Tensor]  # (block, rows, attend, rotary) -> rows; may be replaced by its compiled form

    @abstractmethod
    def parts(self) -> Iterator[Part]:
        """Every module that is run by a formula of this tower instead of its own `forward`."""

    def check(self) -> None:
        """Refuse what a user put on, or in the place of, a part that a formula runs.

        Raises:
            ValueError: naming the part.
        """
        for part in self.parts():
            check_part(part, self.library)

    @property
    def class_tokens(self) -> int:
        """Prefix tokens that say what a picture shows; the others are registers."""
        return min(1, self.prefix_tokens)

    def start(self, build: Callable[[Tensor], Tensor], patches: Tensor) -> Tensor:
        """Rows that go into the blocks, built from pixels (N, 3, patch_size, patch_size)."""
        return build(patches)

    @abstractmethod
    def embed(self, patches: Tensor) -> Tensor:
        """(N, 3, patch_size, patch_size) pixels -> (N, D), without positions."""

    @abstractmethod
    def positions(self, grid: PatchGrid) -> Tensor | None:
        """(patches_per_frame, D) position embedding of every id of a grid; None where the family only rotates."""

    @abstractmethod
    def prefix(self) -> Tensor | None:
        """(R, D) class and register tokens with their own positions; None if there are none."""

    @abstractmethod
    def encode(self, rows: Tensor, attend: Attend, rotary: Tensor | None) -> Tensor:
        """Everything from the first norm to the last on packed rows (M, D), or on images of rows (S, L, D).

        Args:
            attend: attention within the bounds of the layout.
            rotary: rotary angles of every row, as `rotary` gives them, with prefix rows not rotated.
        """

    def rotary(self, grid: PatchGrid) -> Tensor | None:
        """(patches_per_frame, ...) rotary table of every id of a grid; None where there are no rotary positions."""
        return None

    def drop(self, rows: Tensor) -> Tensor:
        """Dropout of embedded tokens."""
        return rows

    @abstractmethod
    def pool(self, tokens: PoolInput) -> Tensor:
        """(S, D') what the dense model puts before its classifier."""


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
    if module.startswith("timm."):
        from autogaze.vit.timm import TOWERS as TIMM_TOWERS

        if name in TIMM_TOWERS:
            return TIMM_TOWERS[name](model)
    if module.startswith("transformers."):
        from autogaze.vit.hf import tower_of_hf

        if (tower := tower_of_hf(model)) is not None:
            return tower
    raise ValueError(
        f"GazedViT does not know {module}.{name}; it knows timm's VisionTransformer, Eva and NaFlexVit and "
        "transformers' ViT, DeiT, DINOv2, DINOv3, SigLIP, SigLIP2, CLIP and ViT-MAE models; see docs/vit-support.md"
    )
