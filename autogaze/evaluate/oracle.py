"""Greedy oracles: the searches that make training labels, run on the very clips that are judged.

Each frame takes, one after another, the patches that lower the judge's own loss most. That needs hundreds of passes of
the judge a frame, so an oracle is an upper bound to measure against and not a way to choose patches. Greedy choices
are not optimal: a gaze may in principle do better.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from autogaze.core.gaze import Gaze
from autogaze.core.grid import PatchGrid
from autogaze.decoding.request import PerFrame
from autogaze.pretrain.distance import Distance
from autogaze.pretrain.labels.feature_greedy import FeatureSearch, greedy_features
from autogaze.pretrain.labels.greedy import GreedySettings, greedy_gaze
from autogaze.pretrain.reconstructor.network import Reconstructor
from autogaze.selectors.ranking import open_video

SETTINGS = GreedySettings(candidates=12, picks=2, share=4, worth=0.8)  # more careful than labels are made


@dataclass(frozen=True, eq=False)
class GreedyOracle:
    """Exactly the budget in every frame. On a GPU the search runs in bfloat16; what it finds is judged in float32."""

    reconstructor: Reconstructor
    settings: GreedySettings = SETTINGS

    @property
    def grid(self) -> PatchGrid:
        return self.reconstructor.grid

    def __call__(self, video: Tensor, gazing_ratio: PerFrame, generator: torch.Generator | None = None) -> Gaze:
        """Choose patches; deterministic, `generator` is not used."""
        video, budget = open_video(video, self.grid, gazing_ratio)
        with torch.autocast(video.device.type, torch.bfloat16, enabled=video.device.type == "cuda"):
            return greedy_gaze(self.reconstructor, video, budget, self.settings).gaze


@dataclass(frozen=True, eq=False)
class FeatureOracle:
    """Searches on a distance of the pasted picture. On a GPU the search runs in bfloat16."""

    distance: Distance
    grid: PatchGrid
    settings: FeatureSearch = FeatureSearch(candidates=24)

    def __call__(self, video: Tensor, gazing_ratio: PerFrame, generator: torch.Generator | None = None) -> Gaze:
        """Choose patches; deterministic, `generator` is not used."""
        video, budget = open_video(video, self.grid, gazing_ratio)
        return greedy_features(self.distance, video, budget, self.grid, self.settings).gaze
