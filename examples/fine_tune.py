"""Fine-tune a ViT on gazed patches: which way does the camera work in a rendered scene?

python examples/fine_tune.py CHECKPOINT [STEPS]
"""

import sys

import timm
import torch
from torch.nn import functional as F

from autogaze import AutoGaze, GazedViT
from autogaze.media.preprocess import Preprocessor
from autogaze.media.scenes import render_scene

KINDS = ("pan", "object", "zoom", "flicker")


def main(checkpoint: str, steps: int = 200, name: str = "vit_tiny_patch16_224", frames: int = 8) -> list[float]:
    vit = timm.create_model(name, num_classes=len(KINDS))
    gazed = GazedViT(vit, attention="joint").train()  # one class token sees the whole clip
    model = AutoGaze.from_pretrained(checkpoint).eval()
    optimiser = torch.optim.AdamW(gazed.parameters(), lr=3e-4)
    losses = []
    for step in range(int(steps)):
        labels = torch.randint(len(KINDS), (4,))
        scenes = [render_scene(4 * step + i, frames, kind=KINDS[label]) for i, label in enumerate(labels.tolist())]
        video = torch.cat([Preprocessor()(scene) for scene in scenes])
        gaze = model.generate(video, gazing_ratio=0.1)
        loss = F.cross_entropy(vit.head(gazed(video, gaze).pool()), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        print(f"step {step}: loss {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main(*sys.argv[1:])
