"""Reconstruction losses: how far a frame is from the truth. One number a frame, pluggable terms.

A spec such as "l1+0.5*gradient" is a weighted sum of terms:

- `l1`: mean absolute difference of the pixels;
- `gradient`: mean absolute difference of the pixels' horizontal and vertical steps at full, half and quarter
  size: edges and texture count, flat offsets do not; needs no download;
- `features:NAME`: one minus the cosine of the features of a frozen model, averaged over its tokens. NAME is a timm
  model (`features:timm/vit_small_patch14_dinov2`) or a Hugging Face one (`features:facebook/dinov2-small`).

The paper trains with 1 l1 + 0.3 DINOv2 + 0.3 SigLIP2 features (arXiv:2603.12254).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autogaze.extras import explain

GRADIENT_SIZES = (1, 2, 4)  # the frame is shrunk by these


@dataclass(frozen=True)
class Term:
    """One term of a spec: weight * name[:argument]."""

    weight: float
    name: str
    argument: str = ""


def parse_spec(spec: str) -> tuple[Term, ...]:
    """Read "l1+0.5*gradient".

    Raises:
        ValueError: if a term is unknown or the spec is empty.
    """
    terms = []
    for part in (part.strip() for part in spec.split("+")):
        weight, _, rest = part.rpartition("*")
        name, _, argument = rest.partition(":")
        if name not in ("l1", "gradient", "features") or (name == "features") != bool(argument):
            raise ValueError(
                f"unknown loss term {part!r} in {spec!r}; terms are l1, gradient and features:MODEL, "
                "joined by + and weighted by NUMBER*"
            )
        try:
            terms.append(Term(float(weight) if weight else 1.0, name, argument))
        except ValueError:
            raise ValueError(f"the weight of loss term {part!r} must be a number, got {weight!r}") from None
    return tuple(terms)


def l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference over the last three axes: (..., 3, H, W) -> (...)."""
    return _l1(prediction - target)


def gradient(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of pixel steps at several sizes: (..., 3, H, W) -> (...)."""
    return _gradient(prediction - target)


def _l1(difference: Tensor) -> Tensor:
    return difference.abs().mean(dim=(-3, -2, -1))


def _gradient(difference: Tensor) -> Tensor:
    """Steps and shrinking are linear, so the difference of two images is enough."""
    flat = difference.flatten(0, -4)
    total = flat.new_zeros(len(flat))
    for size in GRADIENT_SIZES:
        small = F.avg_pool2d(flat, size) if size > 1 else flat
        across, down = small.diff(dim=-1).abs(), small.diff(dim=-2).abs()
        total = total + across.mean(dim=(-3, -2, -1)) + down.mean(dim=(-3, -2, -1))
    return (total / len(GRADIENT_SIZES)).unflatten(0, difference.shape[:-3])


class FrameLoss(nn.Module):
    """The weighted sum that a spec names; call it with (..., 3, H, W) prediction and target in [-1, 1] -> (...)."""

    def __init__(self, spec: str) -> None:
        super().__init__()
        self.terms = parse_spec(spec)
        self.features = nn.ModuleList(FeatureDistance(term.argument) for term in self.terms if term.name == "features")

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(prediction.device.type, enabled=False):
            prediction, target = prediction.float(), target.float()
            difference = prediction - target
            total = difference.new_zeros(difference.shape[:-3])
            for term in self.terms:
                if term.name != "features":
                    total = total + term.weight * (_l1 if term.name == "l1" else _gradient)(difference)
        features = iter(self.features)
        for term in self.terms:
            if term.name == "features":
                total = total + term.weight * next(features)(prediction, target)
        return total

    def local(self, prediction: Tensor, target: Tensor, cells: tuple[int, int]) -> Tensor:
        """The loss cell by cell: (N, 3, H, W) twice -> (N, *cells), with about the loss as its mean.

        Feature terms have no place and are left out; where they are all there is, the place is that of l1.
        """
        with torch.autocast(prediction.device.type, enabled=False):
            difference = prediction.float() - target.float()
            weight = {name: sum(term.weight for term in self.terms if term.name == name) for name in ("l1", "gradient")}
            if not any(weight.values()):
                weight["l1"] = 1.0
            total = weight["l1"] * F.adaptive_avg_pool2d(difference.abs().mean(1), cells)
            if weight["gradient"]:
                for size in GRADIENT_SIZES:
                    small = F.avg_pool2d(difference, size) if size > 1 else difference
                    steps = F.pad(small.diff(dim=-1).abs(), (0, 1)) + F.pad(small.diff(dim=-2).abs(), (0, 0, 0, 1))
                    part = F.adaptive_avg_pool2d(steps.mean(1), cells)
                    total = total + weight["gradient"] / len(GRADIENT_SIZES) * part
        return total


class FeatureDistance(nn.Module):
    """One minus the cosine between a frozen model's features of two images, averaged over its tokens."""

    mean: Tensor  # (3, 1, 1)
    std: Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.model: Any
        self.model, mean, std = _feature_model(name)
        self.model.eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> FeatureDistance:
        """The feature model stays in evaluation mode."""
        return super().train(False)

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self._tokens(target)
        distance = 1 - F.cosine_similarity(self._tokens(prediction).float(), wanted.float(), dim=-1)
        return distance.mean(-1).unflatten(0, prediction.shape[:-3])

    def _tokens(self, frames: Tensor) -> Tensor:
        """(N, tokens, width) of frames (..., 3, H, W) in [-1, 1]."""
        frames = ((frames.flatten(0, -4) + 1) / 2 - self.mean) / self.std
        if hasattr(self.model, "forward_features"):
            features = self.model.forward_features(frames)
        else:
            features = self.model(pixel_values=frames).last_hidden_state
        return features if features.ndim == 3 else features.flatten(2).mT


def _feature_model(name: str) -> tuple[nn.Module, tuple[float, ...], tuple[float, ...]]:
    """A feature extractor with its pixel mean and standard deviation."""
    if name.startswith("timm/"):
        try:
            import timm
        except ImportError as error:
            raise explain(error, f"features:{name}") from error
        model: Any = timm.create_model(
            name.removeprefix("timm/"), pretrained=True, num_classes=0, dynamic_img_size=True
        )
        return model, tuple(model.pretrained_cfg["mean"]), tuple(model.pretrained_cfg["std"])
    try:
        from transformers import AutoImageProcessor, AutoModel
    except ImportError as error:
        raise explain(error, f"features:{name}") from error
    model, processor = AutoModel.from_pretrained(name), AutoImageProcessor.from_pretrained(name)
    return getattr(model, "vision_model", model), tuple(processor.image_mean), tuple(processor.image_std)
