"""Adapt a ViT to gazed patches and use it: python examples/adapt.py VIT VIDEOS OUT [key=value ...]

VIT is a timm name, a hub id or a folder; VIDEOS a folder of any videos, without labels. On a GPU it takes minutes.
"""

import sys
from pathlib import Path

import torch

from autogaze import AutoGaze, GazedViT
from autogaze.adapt.recipe import load_recipe
from autogaze.adapt.run import adapt
from autogaze.media.video import read_video
from autogaze.vit.plan import choose

SIDE = 14  # cells each way that the gaze model chooses among


def main(vit: str, videos: str, out: str, *settings: str, preset: str = "base") -> torch.Tensor:
    frozen = GazedViT.from_pretrained(vit)
    size = SIDE * frozen.patch_size
    summary = adapt(vit, videos, Path(out), load_recipe(preset, settings), size)
    print(f"{summary['steps']} steps in {summary['minutes']} minutes: {summary['adapter']}")

    adapted = GazedViT.from_pretrained(vit, adapter=summary["adapter"], size=size)
    plan = adapted.recommended()
    frames = read_video(next(Path(videos).rglob("*.mp4")), frames=16).frames
    model = AutoGaze.from_pretrained("autogaze-base")
    with torch.inference_mode():
        gaze = choose(model, model.preprocessor(frames), plan, per_frame=26)
        features = adapted(adapted.preprocessor(frames), gaze)
    print(f"{len(features.features)} patches instead of {SIDE * SIDE * len(frames)}, {plan.reason}")
    return features.pool()  # (1, T, D)


if __name__ == "__main__":
    main(*sys.argv[1:])
