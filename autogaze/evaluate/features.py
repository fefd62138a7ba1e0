"""Distances of a pretrained ViT's features between the pictures of a gaze and the true frames.

Two pictures are judged: the *pasted* one (what the patches show, no network) and the *rebuilt* one (the
reconstructor's). A distance is 1 - cosine, mean over the patch tokens, or of the pooled feature.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from autogaze.core.gaze import Gaze
from autogaze.evaluate.clips import ClipSet
from autogaze.media.preprocess import Preprocessor
from autogaze.pretrain.distance import FeatureDistance, Target
from autogaze.pretrain.reconstructor.network import Reconstructor
from autogaze.pretrain.reconstructor.paste import paste

PASTED, REBUILT = "pasted", "rebuilt"  # pictures
PICTURES_AT_ONCE = 256  # in one batch of a ViT


@dataclass(frozen=True, eq=False)
class Viewer:
    """A ViT that judges."""

    name: str
    distance: FeatureDistance

    def of_range(self, preprocessor: Preprocessor) -> Viewer:
        """The same for pictures of a preprocessor's range."""
        return replace(self, distance=replace(self.distance, preprocessor=preprocessor))


@dataclass(frozen=True, eq=False)
class FeatureScores:
    """Distances of one method at one ratio, (N,) float64 each, mean over a clip's frames."""

    viewer: str
    disturbance: str
    method: str
    sort: str  # network, selector or oracle
    gazing_ratio: float  # asked
    picture: str  # PASTED or REBUILT
    patch: np.ndarray  # patch tokens
    pooled: np.ndarray  # pooled feature


@dataclass(frozen=True, eq=False)
class FeatureEvaluator:
    """Judges gazes of one set of clips with several ViTs.

    float32; on a GPU the ViT's products are TF32, whose error is a ten-thousandth of the distances.
    """

    viewers: Sequence[Viewer]
    clips: ClipSet  # that were looked at
    truth: ClipSet  # whose features are right: the same clips, or these before they were disturbed
    disturbance: str = "clean"
    reconstructor: Reconstructor | None = None  # rebuilds; None judges pasted pictures alone
    device: torch.device | str = "cpu"
    batch: int = 8  # clips at once; the gazes come in batches of this size
    _targets: dict[tuple[str, int], Target] = field(default_factory=dict, repr=False)

    @torch.no_grad()
    def score(self, method: str, sort: str, gazing_ratio: float, gazes: Mapping[int, Gaze]) -> list[FeatureScores]:
        """Distances of gazes, by the index of each batch's first clip: a row a ViT and picture."""
        found: dict[tuple[str, str], list[Tensor]] = {}
        for part, video in self.clips.batches(self.batch, self.device):
            gaze = gazes[part.start]
            pictures = {PASTED: paste(video, gaze)}
            if self.reconstructor is not None:
                pictures[REBUILT] = self.reconstructor(video, gaze).frames.float()
            for viewer in self.viewers:
                target = self._target(viewer, part)
                for name, picture in pictures.items():
                    found.setdefault((viewer.name, name), []).append(_distances(viewer, picture, target))
        return [
            FeatureScores(viewer, self.disturbance, method, sort, gazing_ratio, picture, *torch.cat(parts, 1).numpy())
            for (viewer, picture), parts in found.items()
        ]

    def _target(self, viewer: Viewer, part: slice) -> Target:
        """Features of a batch's true frames, computed once."""
        key = viewer.name, part.start
        if key not in self._targets:
            frames = self.truth.frames[part].to(self.device).flatten(0, 1)
            pixels = self.truth.preprocessor.normalise(frames)
            with fast_products():
                features = [viewer.distance.target(some) for some in pixels.split(PICTURES_AT_ONCE)]
            self._targets[key] = tuple(torch.cat(parts) for parts in zip(*features, strict=True))
        return self._targets[key]


def _distances(viewer: Viewer, pictures: Tensor, target: Target) -> Tensor:
    """(2, B) float64 on the CPU: distance of patch tokens and of the pooled feature of (B, T, 3, H, W) pictures."""
    found = []
    with fast_products():
        for start in range(0, pictures.shape[0] * pictures.shape[1], PICTURES_AT_ONCE):
            some = slice(start, start + PICTURES_AT_ONCE)
            features = viewer.distance.features(pictures.flatten(0, 1)[some])
            rows: Target = tuple(part[some] for part in target)
            tokens, whole = viewer.distance.parts(features, rows)
            found.append(torch.stack([tokens.mean(1), whole]))
    return torch.cat(found, 1).unflatten(1, pictures.shape[:2]).double().mean(-1).cpu()


@contextmanager
def fast_products() -> Iterator[None]:
    """Matrix products and convolutions in TF32 on GPUs that have it."""
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = True
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before
