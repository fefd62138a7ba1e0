"""One run of `autogaze adapt`: from a ViT and a folder of videos to an adapter."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.callbacks import EarlyStopping

from autogaze.adapt.module import AdaptModule
from autogaze.adapt.recipe import AdaptRecipe
from autogaze.model import AutoGaze
from autogaze.selectors import SELECTORS
from autogaze.training.data.sources import RunClips, resolve
from autogaze.training.trainer import MONITOR, fit
from autogaze.vit.adapter import FILE, AdapterConfig, install, save_adapter
from autogaze.vit.gazed import GazedViT
from autogaze.vit.plan import adapted_plan


def adapt(
    vit: str, data: str | None, out: Path, recipe: AdaptRecipe, size: int | None = None, resume: bool = False
) -> dict[str, Any]:
    """Adapt a ViT to gazed patches and write `out/adapter.safetensors`.

    Args:
        vit: timm name, hub id or folder.
        data: folder of videos and photos, flat or with train/ and val/; None: scenes rendered into the run.
        out: folder of the run; with `resume` it goes on there.
        recipe: knobs.
        size: pixels a side of the frames; by default those that the ViT was trained on.

    Returns:
        a summary: where the adapter is, steps, minutes, the best validation.

    Raises:
        FileNotFoundError, ValueError: if the ViT, the data or the recipe do not fit.
    """
    if recipe.devices > 1:
        raise ValueError("a ViT is adapted on one device; use devices=1")
    torch.manual_seed(recipe.seed)
    student = GazedViT.from_pretrained(vit, attention=recipe.attention, size=size)
    teacher = GazedViT.from_pretrained(vit, attention="frame", size=size)
    if student.frame_px[0] != student.frame_px[1]:
        raise ValueError(f"this ViT takes frames of {student.frame_px}; name a square with --size")
    chooser = recipe.chooser if recipe.chooser in SELECTORS else AutoGaze.from_pretrained(recipe.chooser).eval()
    cells = student.frame_px[0] // student.patch_size
    side = 14 if isinstance(chooser, str) else chooser.grid.sides[-1][0]
    if cells != side:
        patch = student.patch_size
        raise ValueError(
            f"{recipe.chooser} chooses among {side} x {side} cells, this ViT has {cells} x {cells} patches at "
            f"{student.frame_px[0]} px: use --size {side * patch}"
        )
    scales = 1 if adapted_plan(recipe.attention).finest else 4
    install(student, AdapterConfig(recipe.attention, scales, recipe.weights, recipe.rank))
    facts = {"vit": Path(vit).name, "size": student.frame_px[0], "chooser": Path(recipe.chooser).name}
    module = AdaptModule(student, teacher, chooser, recipe, facts)
    clips = RunClips(resolve(data, out), out, recipe, recipe.batch_clips, recipe.validate_clips)
    out.mkdir(parents=True, exist_ok=True)
    trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
    print(f"adapting {facts['vit']}: {trained / 1e6:.2f} million weights", file=sys.stderr)
    stop = EarlyStopping(MONITOR, patience=recipe.patience, mode="min", verbose=False)
    result = fit(module, clips, recipe, out, resume, [stop])
    if not (out / FILE).is_file():  # ended before the first validation
        save_adapter(student, out / FILE, facts)
    return {
        "adapter": str(out / FILE),
        "steps": result.steps,
        "minutes": round(result.minutes, 2),
        "best_distance": result.best,
        "attention": recipe.attention,
    }
