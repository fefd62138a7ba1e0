"""Encode only what was looked at, with a timm ViT: python examples/encode_timm.py VIDEO CHECKPOINT [TIMM_NAME]"""

import sys

import timm
import torch

from autogaze import AutoGaze, GazedViT
from autogaze.media.video import read_video
from autogaze.vit.plan import CLIP, choose


def main(video: str, checkpoint: str, name: str = "vit_base_patch16_224", pretrained: bool = True) -> torch.Tensor:
    vit = timm.create_model(name, pretrained=pretrained, num_classes=0).eval()
    frames = read_video(video, frames=16).frames
    model, gazed = AutoGaze.from_pretrained(checkpoint).eval(), GazedViT(vit, CLIP.attention)
    with torch.inference_mode():
        gaze = choose(model, model.preprocessor(frames), CLIP, per_frame=26)  # what a frozen ViT can use
        features = gazed(gazed.preprocessor(frames), gaze)
    print(f"{len(features.features)} patches encoded instead of {vit.patch_embed.num_patches * len(frames)}")
    print(f"pooled: {tuple(features.pool().shape)}, map: {tuple(features.dense().shape)}")
    return features.pool()


if __name__ == "__main__":
    main(*sys.argv[1:])
