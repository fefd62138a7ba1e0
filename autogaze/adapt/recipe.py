"""The recipe of `autogaze adapt`: one flat typed record, two presets, and `key=value`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import yaml

from autogaze.training.recipes import TrainerRecipe, make_recipe
from autogaze.vit.adapter import Weights
from autogaze.vit.packing import Attention


@dataclass(frozen=True)
class AdaptRecipe(TrainerRecipe):
    """Settings of adapting a ViT. Shares are of the cells of the finest scale, mean over the frames of a clip."""

    attention: Attention = "memory"
    weights: Weights = "lora"  # "none": embeddings of scale and age alone
    rank: int = 16  # of LoRA
    chooser: str = "autogaze-base"  # a model's name or folder, or a selector
    min_share: float = 0.06  # patches a frame are drawn between the two, log-evenly, in `shares` steps
    max_share: float = 0.3
    shares: int = 6
    validate_share: float = 0.1327  # 26 of 196 patches a frame
    map_weight: float = 1.0  # of the tokens of the dense map, beside the pooled features
    patience: int = 8  # validations without improvement that end the run

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.min_share <= self.max_share <= 1:
            raise ValueError(f"need 0 < min_share <= max_share <= 1, got {self.min_share} and {self.max_share}")
        if self.rank < 1 or self.shares < 1 or self.patience < 1:
            raise ValueError("rank, shares and patience must be positive")


PRESETS: dict[str, dict[str, object]] = {
    "tiny": {
        "max_steps": 20,
        "batch_clips": 1,
        "frames": 4,
        "rank": 4,
        "learning_rate": 5e-4,
        "warmup_steps": 2,
        "validate_every": 10,
        "validate_clips": 4,
        "checkpoint_every": 10,
        "shares": 2,
    },
    "base": {
        "max_steps": 3000,
        "batch_clips": 16,
        "learning_rate": 5e-4,
        "warmup_steps": 50,
        "weight_decay": 0.01,
        "photo_share": 0.3,
        "validate_every": 100,
        "validate_clips": 64,
        "checkpoint_every": 200,
        "ema_decay": 0.99,
    },
}


def load_recipe(preset: str, settings: Iterable[str] = (), **given: object) -> AdaptRecipe:
    """A preset with changes.

    Args:
        preset: "tiny" (a CPU, minutes) or "base" (a GPU, minutes).
        settings: `key=value`.
        given: fields that are set by options; None: not set.

    Raises:
        ValueError: on an unknown preset or key, or a value that does not fit.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset}")
    changes = dict(PRESETS[preset]) | {key: value for key, value in given.items() if value is not None}
    for text in settings:
        name, equals, raw = text.partition("=")
        if not equals or not name:
            raise ValueError(f"settings are written key=value, got {text!r}")
        changes[name.removeprefix("adapt.")] = yaml.safe_load(raw)
    recipe = make_recipe(AdaptRecipe, changes, "adapt")
    assert isinstance(recipe, AdaptRecipe)
    return recipe
