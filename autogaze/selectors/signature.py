"""Signature: spectral saliency by the discrete cosine transform (Hou, Harel and Koch, "Image Signature", PAMI 2012).

The inverse transform of the signs of a small picture's DCT coefficients is large where something sparse stands out
from a regular background. Squared, summed over the colours and blurred, at 64 x 64 as in the paper.
"""

from __future__ import annotations

from math import pi

import torch
import torch.nn.functional as F
from torch import Tensor

from autogaze.selectors.ranking import ScoringSelector

_SIZE = 64  # pixels, side of the picture that is transformed
_SIGMA = 0.05 * _SIZE  # pixels, blur of the map, the paper's share of the width


class SignatureSelector(ScoringSelector):
    """Scores patches by the image signature."""

    def scores(self, video: Tensor, budget: Tensor) -> Tensor:
        saliency = image_signature(video.flatten(0, 1)).unflatten(0, budget.shape)
        return self.lattice.means(self.lattice.pool(saliency))


def image_signature(frames: Tensor) -> Tensor:
    """(N, 3, H, W) to a saliency map (N, H, W)."""
    small = F.interpolate(frames, size=(_SIZE, _SIZE), mode="bilinear", antialias=True)
    basis = _dct_basis(_SIZE).to(small)
    signs = (basis @ small @ basis.T).sign()
    energy = (basis.T @ signs @ basis).square().sum(1, keepdim=True)
    kernel = _gaussian(_SIGMA).to(small)
    half = len(kernel) // 2
    blurred = F.conv2d(F.pad(energy, (half,) * 4, mode="reflect"), kernel[:, None] * kernel[None, :][None, None])
    return F.interpolate(blurred, size=frames.shape[-2:], mode="bilinear", align_corners=False)[:, 0]


def _dct_basis(size: int) -> Tensor:
    """(size, size) orthonormal DCT-II: row k is the k-th cosine."""
    n = torch.arange(size, dtype=torch.float64, device="cpu")
    basis = torch.cos(pi * (n + 0.5) * n[:, None] / size) * (2.0 / size) ** 0.5
    basis[0] /= 2.0**0.5
    return basis


def _gaussian(sigma: float) -> Tensor:
    offsets = torch.arange(-round(3 * sigma), round(3 * sigma) + 1, dtype=torch.float64, device="cpu")
    weights = torch.exp(-0.5 * (offsets / sigma).square())
    return weights / weights.sum()
