"""Encode a whole clip jointly with Hugging Face's SigLIP2: python examples/encode_siglip2.py VIDEO CHECKPOINT"""

import sys

import torch
from transformers import SiglipVisionModel

from autogaze import AutoGaze, GazedViT
from autogaze.media.video import read_video

NAME = "google/siglip2-base-patch16-224"  # SigLIP2 of a fixed size has SigLIP's classes


def main(video: str, checkpoint: str, vit: SiglipVisionModel | None = None) -> torch.Tensor:
    vit = vit or SiglipVisionModel.from_pretrained(NAME)
    frames = read_video(video, frames=16).frames
    model = AutoGaze.from_pretrained(checkpoint).eval()
    gazed = GazedViT(vit.eval(), attention="block_causal")  # a patch sees its own and earlier frames
    with torch.inference_mode():
        gaze = model.generate(model.preprocessor(frames), task_loss_requirement=0.1)  # frames stop when that is met
        features = gazed(gazed.preprocessor(frames), gaze)
    for frame, count in enumerate(gaze.counts[0].tolist()):
        print(f"frame {frame}: {count} patches")
    return features.pool()  # (1, T, D): one vector for each frame


if __name__ == "__main__":
    main(*sys.argv[1:])
