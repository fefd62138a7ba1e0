"""Methods under test: checkpoints, selectors without a network, and greedy oracles, all behind one call.

Greedy oracles are the searches that make training labels, run on the very clips that are judged. Each frame takes, one
after another, the patches that lower the judge's own loss most. That needs hundreds of passes of the judge a frame, so
an oracle is an upper bound to measure against and not a way to choose patches. Greedy choices are not optimal: a gaze
may in principle do better.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from autogaze.core.gaze import Gaze
from autogaze.core.grid import PatchGrid
from autogaze.decoding.request import PerFrame
from autogaze.evaluate.clips import ClipSet
from autogaze.model import AutoGaze
from autogaze.pretrain.distance import Distance, FeatureDistance
from autogaze.pretrain.labels.feature_greedy import FeatureSearch, greedy_features
from autogaze.pretrain.labels.greedy import GreedySettings, greedy_gaze
from autogaze.pretrain.reconstructor.network import Reconstructor
from autogaze.selectors import SELECTORS, make_selector
from autogaze.selectors.codec import CodecSelector
from autogaze.selectors.ranking import open_video

NETWORK, SELECTOR, ORACLE = "network", "selector", "oracle"  # what a method is
CODEC = "codec"  # a selector that reads files
UNTRAINED, RECONSTRUCTION_ORACLE, FEATURE_ORACLE = "untrained", "oracle", "feature-oracle"
ORACLE_SETTINGS = GreedySettings(candidates=12, picks=2, share=4, worth=0.8)  # more careful than labels are made


@dataclass(frozen=True)
class Method:
    """Something that chooses patches."""

    name: str
    sort: str  # NETWORK, SELECTOR or ORACLE
    choose: Callable[[Tensor, float, torch.Generator], Gaze]  # (video, gazing_ratio, generator)
    model: AutoGaze | None = None  # of a network
    choose_files: Callable[[ClipSet, slice, float], Gaze] | None = None  # of a method that reads the files instead

    def gazes(
        self, clips: ClipSet, batch: int, device: torch.device | str, gazing_ratio: float, seed: int = 0
    ) -> dict[int, Gaze]:
        """Its choices in every batch of clips, by the index of the batch's first clip."""
        generator, found = torch.Generator().manual_seed(seed), {}
        for part, video in clips.batches(batch, device):
            if self.choose_files is not None:
                found[part.start] = self.choose_files(clips, part, gazing_ratio).to(device)
            else:
                found[part.start] = self.choose(video, gazing_ratio, generator)
        return found


@dataclass(frozen=True, eq=False)
class GreedyOracle:
    """Exactly the budget in every frame. On a GPU the search runs in bfloat16; what it finds is judged in float32."""

    reconstructor: Reconstructor
    settings: GreedySettings = ORACLE_SETTINGS

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


def selector_method(name: str, grid: PatchGrid) -> Method:
    """A selector of `autogaze.selectors` by name."""
    return Method(name, SELECTOR, make_selector(name, grid))


def model_method(name: str, model: AutoGaze, grid: PatchGrid) -> Method:
    """A model on the judge's grid. A model with fewer scales spends as many patches, not as large a share."""
    if model.grid == grid:
        return Method(name, NETWORK, lambda video, ratio, generator: model.generate(video, gazing_ratio=ratio), model)
    empty = torch.zeros(1, 1, 0, dtype=torch.int64)
    Gaze(empty, empty.bool(), model.grid).on_grid(grid)  # refuses a grid that does not fit before anything is read

    def choose(video: Tensor, ratio: float, generator: torch.Generator) -> Gaze:
        share = min(1.0, (grid.budget(ratio) + 0.5) / model.grid.patches_per_frame)
        return model.generate(video, gazing_ratio=share).on_grid(grid)

    return Method(name, NETWORK, choose, model)


def oracle_method(reconstructor: Reconstructor) -> Method:
    """The greedy search on the judge itself: what a gaze could reach, not something that can be used."""
    return Method(RECONSTRUCTION_ORACLE, ORACLE, GreedyOracle(reconstructor))


def feature_oracle_method(distance: FeatureDistance, grid: PatchGrid) -> Method:
    """The greedy search on what a ViT sees of the pasted picture: what a gaze could reach for that ViT."""
    return Method(FEATURE_ORACLE, ORACLE, FeatureOracle(distance, grid))


def codec_method(grid: PatchGrid) -> Method:
    """Motion vectors of the files: sees no pixels, so disturbed clips are not for it."""
    select = CodecSelector(grid)

    def choose(video: Tensor, ratio: float, generator: torch.Generator) -> Gaze:
        raise ValueError(f"{CODEC} chooses from files, not from pixels")

    def choose_files(clips: ClipSet, part: slice, ratio: float) -> Gaze:
        gazes = [
            select(path, frames, ratio) for path, frames in zip(clips.paths[part], clips.picked[part], strict=True)
        ]
        ids, chosen = (torch.cat([getattr(gaze, name) for gaze in gazes]) for name in ("ids", "chosen"))
        return Gaze(ids, chosen, grid)

    return Method(CODEC, SELECTOR, choose, choose_files=choose_files)


def make_methods(
    checkpoints: Sequence[str],
    against: Sequence[str],
    reconstructor: Reconstructor,
    device: torch.device | str,
    features: FeatureDistance | None = None,
) -> list[Method]:
    """Methods from what the command line names.

    Args:
        checkpoints: folders, names or hub ids, each optionally as label=checkpoint; listed from weak to strong.
        against: names of selectors, "codec", "oracle", "feature-oracle", "untrained" (the first checkpoint's
            architecture, random weights).
        reconstructor: the judge.
        device: where models run.
        features: the distance that the feature oracle searches on.

    Raises:
        ValueError: if two methods have the same name, a selector is unknown, "untrained" has no architecture or
            "feature-oracle" no features.
    """
    models = {label: AutoGaze.from_pretrained(folder, device=device) for label, folder in map(parse_label, checkpoints)}
    if UNTRAINED in against:
        if not models:
            raise ValueError("untrained needs a --checkpoint, whose architecture it takes")
        models = {UNTRAINED: untrained(next(iter(models.values()))), **models}
    if FEATURE_ORACLE in against and features is None:
        raise ValueError(f"{FEATURE_ORACLE} needs --features, whose distance it searches on")
    names = [name for name in against if name not in (UNTRAINED, CODEC, RECONSTRUCTION_ORACLE, FEATURE_ORACLE)]
    methods = [selector_method(name, reconstructor.grid) for name in names]
    methods += [codec_method(reconstructor.grid)] if CODEC in against else []
    methods += [model_method(name, model, reconstructor.grid) for name, model in models.items()]
    if RECONSTRUCTION_ORACLE in against:
        methods.append(oracle_method(reconstructor))
    if FEATURE_ORACLE in against and features is not None:
        methods.append(feature_oracle_method(features, reconstructor.grid))
    if len(models) < len(checkpoints) or len({method.name for method in methods}) < len(methods):
        raise ValueError(
            f"every method needs its own name, got {[method.name for method in methods]}; use --checkpoint LABEL=FOLDER"
        )
    return methods


def untrained(model: AutoGaze) -> AutoGaze:
    """The same architecture with random weights, always the same ones."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoGaze(replace(model.config, calibration=())).to(model.device).eval()


def parse_label(text: str) -> tuple[str, str]:
    """("ntp", "runs/a") from "ntp=runs/a"; a checkpoint without a label is called by its folder's name."""
    label, found, folder = text.partition("=")
    if found:
        return label, folder
    path = Path(text)
    return (path.parent.name or path.name) if path.name == "model" else path.name, text


def known_methods() -> tuple[str, ...]:
    """Names that `against` may hold."""
    return (*SELECTORS, CODEC, UNTRAINED, RECONSTRUCTION_ORACLE, FEATURE_ORACLE)
