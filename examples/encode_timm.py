"""Encode only what was looked at, with a timm ViT: python examples/encode_timm.py VIDEO CHECKPOINT [TIMM_NAME]"""

import sys

import timm
import torch

from autogaze import AutoGaze, GazedViT
from autogaze.media.preprocess import Preprocessor
from autogaze.media.video import read_video


def main(video: str, checkpoint: str, name: str = "vit_base_patch16_224", pretrained: bool = True) -> torch.Tensor:
    vit = timm.create_model(name, pretrained=pretrained, num_classes=0).eval()
    frames = read_video(video, frames=16).frames
    seen = Preprocessor()(frames)  # what the gaze model takes: 224 px, -1..1
    mean, std = (tuple(vit.pretrained_cfg[key]) for key in ("mean", "std"))
    shown = Preprocessor(rescale_factor=1 / 255, offset=False, mean=mean, std=std)(frames)  # what this ViT takes

    model, gazed = AutoGaze.from_pretrained(checkpoint).eval(), GazedViT(vit)
    with torch.inference_mode():
        gaze = model.generate(seen, gazing_ratio=0.1)
        features = gazed(shown, gaze)
    print(f"{len(features.features)} patches encoded instead of {vit.patch_embed.num_patches * len(frames)}")
    print(f"pooled: {tuple(features.pool().shape)}, map: {tuple(features.dense().shape)}")
    return features.pool()


if __name__ == "__main__":
    main(*sys.argv[1:])
