"""Lightning module of `autogaze adapt`: the dense ViT's features are the target, gazed patches the input."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from autogaze.adapt.recipe import AdaptRecipe
from autogaze.core.gaze import Gaze
from autogaze.core.grid import PatchGrid
from autogaze.model import AutoGaze
from autogaze.training.data.clip import Clip
from autogaze.training.trainer import MONITOR
from autogaze.vit.adapter import FILE, save_adapter
from autogaze.vit.features import PackedFeatures
from autogaze.vit.gazed import GazedViT
from autogaze.vit.plan import adapted_plan, choose


class AdaptModule(pl.LightningModule):
    """Teach a GazedViT with an adapter what the dense ViT says.

    Args:
        student: with an adapter (`autogaze.vit.adapter.install`).
        teacher: the same ViT as it was, `attention="frame"`.
        chooser: what chooses patches: a model, or the name of a selector.
        recipe: knobs.
        facts: kept in the adapter's file.
    """

    mean: Tensor  # (3, 1, 1)
    std: Tensor

    def __init__(
        self,
        student: GazedViT,
        teacher: GazedViT,
        chooser: AutoGaze | str,
        recipe: AdaptRecipe,
        facts: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.student, self.recipe, self.facts = student, recipe, dict(facts or {})
        self.plan = adapted_plan(recipe.attention)
        # neither is trained, nor part of a checkpoint
        self._fixed = [teacher.requires_grad_(False).eval()]
        self._chooser: list[AutoGaze | str] = [chooser]
        self.run_progress = 0.0
        preprocessor = student.preprocessor
        self.register_buffer("mean", torch.tensor(preprocessor.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessor.std).view(3, 1, 1), persistent=False)

    @property
    def model(self) -> AdaptModule:
        """This module, of which the best of a run is saved (see `autogaze.training.callbacks.KeepBest`)."""
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the adapter."""
        facts = {**self.facts, "steps": self.global_step}
        save_adapter(self.student, Path(folder) / FILE, facts)

    def on_fit_start(self) -> None:
        self._fixed[0].to(self.device)
        if isinstance(self._chooser[0], AutoGaze):
            self._chooser[0].to(self.device)

    def training_step(self, batch: Clip, batch_idx: int) -> Tensor:
        random = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + self.global_step)
        step = int(torch.randint(self.recipe.shares, (1,), generator=random))
        low, high = math.log(self.recipe.min_share), math.log(self.recipe.max_share)
        share = math.exp(low + (high - low) * step / max(1, self.recipe.shares - 1))
        losses = self.losses(batch.video, share)
        loss = losses["pooled"] + losses["clip"] + self.recipe.map_weight * losses["map"]
        self.log_dict({f"train/{name}": value for name, value in losses.items()}, batch_size=len(batch))
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch))
        return loss

    def validation_step(self, batch: Clip, batch_idx: int) -> None:
        losses = self.losses(batch.video, self.recipe.validate_share)
        loss = losses["pooled"] + losses["clip"] + self.recipe.map_weight * losses["map"]
        named = {f"val/{name}_distance": value for name, value in losses.items()}
        self.log_dict(named, batch_size=len(batch), sync_dist=True)
        # what the best checkpoint is kept by, under the name that every stage of training uses
        self.log(MONITOR, loss, prog_bar=True, batch_size=len(batch), sync_dist=True)

    def losses(self, video: Tensor, share: float) -> dict[str, Tensor]:
        """Distances (1 - cosine) of a frame's pooled feature, of the clip's, and of the dense map's tokens.

        Args:
            video: (B, T, 3, H, W) float in -1..1, as the gaze model takes it.
            share: of the finest cells, a frame.
        """
        pixels = self.pixels(video)
        grid = PatchGrid((pixels.shape[-1],), self.student.patch_size)
        with torch.no_grad(), torch.autocast(video.device.type, enabled=False):
            gaze = choose(self._chooser[0], video, self.plan, share * grid.patches_per_frame)
        with torch.no_grad():
            ids = torch.arange(grid.patches_per_frame, device=video.device).expand(*video.shape[:2], -1)
            every = Gaze(ids, torch.ones_like(ids, dtype=torch.bool), grid)
            wanted = self._fixed[0](pixels, every)
        found = self.student(pixels, gaze)
        return distances(found, wanted)

    def pixels(self, video: Tensor) -> Tensor:
        """The clip as the ViT wants it."""
        size = self.student.frame_px
        frames = video.flatten(0, 1)
        if frames.shape[-2:] != size:
            frames = F.interpolate(frames, size, mode="bilinear", antialias=True)
        return (((frames + 1) / 2 - self.mean) / self.std).unflatten(0, video.shape[:2])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(
            trained, lr=self.recipe.learning_rate, weight_decay=self.recipe.weight_decay, betas=(0.9, 0.98)
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Frozen weights are in the ViT's own file."""
        trained = {f"student.{name}" for name, p in self.student.named_parameters() if p.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = {**self.state_dict(), **checkpoint["state_dict"]}


def distances(found: PackedFeatures, wanted: PackedFeatures) -> dict[str, Tensor]:
    """1 - cosine of what was found and what the dense ViT says; cells that were never shown do not count."""
    theirs = wanted.pool().float()
    own = found.pool().float()
    result = {}
    if own.ndim == 3:
        result["pooled"] = 1 - F.cosine_similarity(own, theirs, dim=-1).mean()
        own = own.mean(1)
    else:
        result["pooled"] = own.new_zeros(())
    result["clip"] = 1 - F.cosine_similarity(own, theirs.mean(1), dim=-1).mean()
    maps = found.dense().float()
    shown = (maps != 0).any(2)
    cosine = F.cosine_similarity(maps, wanted.dense().float(), dim=2)
    result["map"] = 1 - (cosine * shown).sum() / shown.sum().clamp(min=1)
    return result
