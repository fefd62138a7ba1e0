"""Optical flow: look where pixels move.

Dense inverse search (Kroeger et al., ECCV 2016, arXiv:1603.03590) by OpenCV, on the CPU, between neighbouring
frames; a patch scores the mean length of the motion vectors in it. The first frame has no motion and goes coarse to
fine, as does a frame in which nothing moves.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from autogaze.selectors.features import luminance
from autogaze.selectors.ranking import ScoringSelector


class FlowSelector(ScoringSelector):
    """Scores patches by how fast their pixels move."""

    def scores(self, video: Tensor, budget: Tensor) -> Tensor:
        grey = luminance(video)
        low, high = grey.amin((1, 2, 3), keepdim=True), grey.amax((1, 2, 3), keepdim=True)
        grey = ((grey - low) / (high - low).clamp(min=1e-6) * 255).round().to(torch.uint8).cpu()
        speed = torch.from_numpy(np.stack([_speed(clip) for clip in grey.numpy()])).to(video.device)
        return self.lattice.means(self.lattice.pool(speed))


def _speed(clip: np.ndarray) -> np.ndarray:
    """(T, H, W) uint8 to (T, H, W) float32: pixels moved since the frame before, 0 in the first frame."""
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    speed = np.zeros(clip.shape, np.float32)
    for t in range(1, len(clip)):
        motion = search.calc(clip[t - 1], clip[t], None)  # type: ignore[call-overload]  # no first guess
        speed[t] = np.linalg.norm(motion, axis=-1)
    return speed
