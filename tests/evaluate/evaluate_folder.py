"""A folder to evaluate: three rendered clips with a manifest, a broken file, a tiny model and a tiny reconstructor."""

from __future__ import annotations

from pathlib import Path

import torch

from autogaze import AutoGaze, PatchGrid
from autogaze.media.scenes import render_scene
from autogaze.media.video import write_video
from autogaze.model import AutoGazeConfig
from autogaze.pretrain.reconstructor.network import Reconstructor, ReconstructorConfig

SCALES = (16, 32, 64)  # 1 + 4 + 16 = 21 patches
GRID = PatchGrid(SCALES)
TINY = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 3, "head_dim": 16, "intermediate_size": 64}


def make_folder(root: Path) -> Path:
    """Fill `root` with clips/, manifest.csv, model/, other/ (a second model) and judge/; returns it."""
    rows = ["file,kind,source_group"]
    for seed, kind in enumerate(("object", "pan", "static")):
        write_video(root / "clips" / f"{kind}.mp4", render_scene(seed, 8, (64, 64), kind))
        rows.append(f"clips/{kind}.mp4,{kind},source-{seed // 2}")
    (root / "manifest.csv").write_text("\n".join(rows))
    (root / "clips" / "broken.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42")
    for seed, name in enumerate(("model", "other")):
        torch.manual_seed(seed)
        AutoGaze(AutoGazeConfig(scales=SCALES, num_multi_token_pred=2, **TINY)).save_pretrained(root / name)
    Reconstructor(ReconstructorConfig(scales=SCALES, width=16, depth=1, heads=2)).save_pretrained(root / "judge")
    return root
