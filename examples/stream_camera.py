"""Gaze at a camera (or a file) frame by frame: python examples/stream_camera.py SOURCE CHECKPOINT

SOURCE is a camera's number, 0 for the first, or a file. Memory stays the same however long it runs.
"""

import sys
import time

import cv2
import torch

from autogaze import AutoGaze
from autogaze.media.preprocess import Preprocessor


def main(source: str, checkpoint: str, most_frames: int | None = None) -> int:
    camera = cv2.VideoCapture(int(source) if source.isdigit() else source)
    if not camera.isOpened():
        raise SystemExit(f"cannot open {source}")
    model, preprocess = AutoGaze.from_pretrained(checkpoint).eval(), Preprocessor()
    stream = model.stream(gazing_ratio=0.05)
    frames = 0
    with torch.inference_mode():
        while frames != most_frames:
            there, frame = camera.read()
            if not there:
                break
            start = time.perf_counter()
            gaze = stream.step(preprocess(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)[None])[0])
            print(f"frame {frames}: {int(gaze.counts)} patches, {(time.perf_counter() - start) * 1e3:.1f} ms")
            frames += 1
    camera.release()
    return frames


if __name__ == "__main__":
    main(*sys.argv[1:])
