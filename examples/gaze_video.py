"""Choose where to look in a video and draw it: python examples/gaze_video.py VIDEO CHECKPOINT OUT.mp4"""

import sys

import numpy as np
import torch

from autogaze import AutoGaze
from autogaze.core.overlay import Overlay
from autogaze.media.preprocess import Preprocessor
from autogaze.media.video import read_video, write_video


def main(video: str, checkpoint: str, out: str) -> None:
    frames = read_video(video, frames=16).frames  # (T, H, W, 3) uint8
    model = AutoGaze.from_pretrained(checkpoint).eval()
    with torch.inference_mode():
        gaze = model.generate(Preprocessor()(frames), gazing_ratio=0.1)

    # A gaze says which patches, per frame: ids in the order chosen, places, boxes in pixels, shares.
    scale, row, column = gaze.grid.locate(gaze.ids[0, 0])
    print(f"{int(gaze.counts.sum())} patches of {len(frames)} frames, {float(gaze.ratio):.1%} of all")
    print(f"first choice: scale {int(scale[0])}, row {int(row[0])}, column {int(column[0])}")

    overlay, masks = Overlay(gaze.grid, frames.shape[1:3]), gaze.patch_mask()[0].numpy()
    pictures = [overlay.draw(frame, mask) for frame, mask in zip(frames, masks, strict=True)]
    write_video(out, np.stack(pictures), fps=8)


if __name__ == "__main__":
    main(*sys.argv[1:])
