"""Load a pretrained ViT by name, with what it expects of pixels.

A name is a folder or hub id of a transformers model (`facebook/dinov2-small`), or a timm model
(`timm/vit_small_patch14_dinov2`, or its plain timm name). A model of pictures and words (CLIP, SigLIP) gives its
vision tower.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from autogaze.extras import explain
from autogaze.vit.towers.wrapped import inner

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# mean and standard deviation of families whose folder says nothing of them
STATISTICS = {
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "siglip2": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "vit": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}


@dataclass(frozen=True, eq=False)
class LoadedViT:
    """A ViT of timm or transformers, frozen and in evaluation mode, and the pixels it was trained on."""

    name: str
    model: Any  # an nn.Module with its library's own attributes
    mean: tuple[float, ...]  # of RGB in [0, 1]
    std: tuple[float, ...]
    library: str  # "timm" or "transformers"

    @property
    def prefix_tokens(self) -> int:
        """Tokens in front of the patches: class token and registers."""
        if self.library == "timm":
            return int(getattr(self.model, "num_prefix_tokens", 0))
        config = self.model.config
        has_class = config.model_type not in ("siglip_vision_model", "siglip2_vision_model", "siglip", "siglip2")
        two = config.model_type == "deit"  # and a distillation token
        return int(has_class) + int(two) + int(getattr(config, "num_register_tokens", 0) or 0)

    def normalise(self, frames: Tensor) -> Tensor:
        """Frames (N, 3, H, W) in [0, 1] as the model wants them."""
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=frames.device).view(3, 1, 1)
            for values in (self.mean, self.std)
        )
        return (frames - mean) / std

    def tokens(self, frames: Tensor, layers: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
        """Tokens of frames (N, 3, H, W) float in [0, 1]; gradients flow to the frames.

        Args:
            frames: see above.
            layers: whose tokens, from 1; each goes through the last norm and is brought to length 1. Of several, the
                channels stand side by side: the cosine of two such tokens is the mean over the layers. None: the last
                layer's, as they are.

        Returns:
            patch tokens (N, L, C), and the pooled feature (N, C): the class token, or the mean where there is none.

        Raises:
            ValueError: if there is no such layer.
        """
        if layers:
            parts = self._intermediate(self.normalise(frames).to(next(self.model.parameters()).dtype), layers)
            joined, prefix = torch.cat([F.normalize(part, dim=-1) for part in parts], -1), self.prefix_tokens
            return joined[:, prefix:], joined[:, 0] if prefix else joined.mean(1)
        frames = self.normalise(frames).to(next(self.model.parameters()).dtype)
        if self.library == "timm":
            found: Tensor = self.model.forward_features(frames)
        else:
            options = {"interpolate_pos_encoding": True} if self.model.config.model_type in _INTERPOLATE else {}
            found = self.model(pixel_values=frames, **options).last_hidden_state
        if found.ndim == 4:  # a convolutional network of timm
            found = found.flatten(2).mT
        prefix = self.prefix_tokens
        patches = found[:, prefix:]
        return patches, found[:, 0] if prefix else patches.mean(1)

    def _intermediate(self, pixels: Tensor, layers: tuple[int, ...]) -> list[Tensor]:
        """Tokens (N, L, C) after layers, each through the last norm."""
        if self.library == "timm":
            blocks = getattr(self.model, "blocks", ())
            self._check_layers(layers, len(blocks))
            caught: list[Tensor] = []
            hooks = [blocks[layer - 1].register_forward_hook(lambda *a: caught.append(a[2])) for layer in layers]
            try:
                self.model.forward_features(pixels)
            finally:
                for hook in hooks:
                    hook.remove()
            return [self.model.norm(tokens) for tokens in caught]
        options = {"interpolate_pos_encoding": True} if self.model.config.model_type in _INTERPOLATE else {}
        states = self.model(pixel_values=pixels, output_hidden_states=True, **options).hidden_states
        self._check_layers(layers, len(states) - 1)
        norm = next(
            (part for name in NORMS if (part := getattr(self.model, name, None)) is not None), torch.nn.Identity()
        )
        return [norm(states[layer]) for layer in layers]

    def _check_layers(self, layers: tuple[int, ...], count: int) -> None:
        if not all(1 <= layer <= count for layer in layers):
            raise ValueError(f"{self.name} has layers 1 to {count}, asked for {', '.join(map(str, layers))}")


NORMS = ("layernorm", "post_layernorm", "norm")  # of transformers' models, after their last layer
_INTERPOLATE = ("siglip_vision_model", "clip_vision_model", "vit", "deit", "siglip", "clip")


def load_vit(
    name: str | Path, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> LoadedViT:
    """Load a pretrained ViT; see the module's docstring for what `name` may be.

    Raises:
        FileNotFoundError: if there is no such folder or model.
        ImportError: if the library that it needs is not installed, naming the extra.
    """
    word = str(name)
    if not Path(word).expanduser().exists() and (word.startswith("timm/") or "/" not in word):
        loaded = _from_timm(word)
    else:
        loaded = _from_transformers(word)
    loaded.model.to(device=device, dtype=dtype).eval().requires_grad_(False)
    return loaded


def pixels_of(model: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of RGB in [0, 1] that a ViT in memory was trained with, as far as it says."""
    model = inner(model)
    for known in (getattr(model, "pretrained_cfg", None), getattr(model, "default_cfg", None)):
        if known and known.get("mean"):
            return tuple(known["mean"]), tuple(known["std"])
    config = getattr(model, "config", None)
    if config is None:
        return IMAGENET
    place = str(getattr(config, "_name_or_path", "") or "")
    found = _processor(place) if place and Path(place).is_dir() else None
    return found or _of_family(str(config.model_type))


def _of_family(kind: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return STATISTICS.get(kind.removesuffix("_vision_model"), IMAGENET)


def _processor(place: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation from a preprocessor's file."""
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(place)
    except (OSError, ValueError):
        return None
    return tuple(processor.image_mean), tuple(processor.image_std)


def _from_timm(name: str) -> LoadedViT:
    try:
        import timm
    except ImportError as error:
        raise explain(error, name) from error
    plain = name.removeprefix("timm/")
    if not timm.is_model(plain):
        raise FileNotFoundError(f"no ViT {name!r}: neither a folder, nor a hub id owner/name, nor a model of timm")
    options: dict[str, Any] = {"dynamic_img_size": True} if plain.startswith(("vit_", "deit", "eva02")) else {}
    try:
        model: Any = timm.create_model(plain, pretrained=True, num_classes=0, **options)
    except (OSError, ValueError, RuntimeError) as error:  # no weights of it, or no way to them
        raise FileNotFoundError(f"no weights of ViT {name!r}: {' '.join(str(error).split())[:200]}") from error
    return LoadedViT(name, model, tuple(model.pretrained_cfg["mean"]), tuple(model.pretrained_cfg["std"]), "timm")


def _from_transformers(name: str) -> LoadedViT:
    try:
        from transformers import AutoModel
    except ImportError as error:
        raise explain(error, name) from error
    folder = Path(name).expanduser()
    place = str(folder) if folder.exists() else name
    try:
        model = AutoModel.from_pretrained(place)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"no ViT {name!r}: {' '.join(str(error).split())[:200]}") from error
    # weights without a preprocessor's file: what the family was trained with
    statistics = _processor(place) or _of_family(str(model.config.model_type))
    return LoadedViT(name, getattr(model, "vision_model", model), *statistics, "transformers")
