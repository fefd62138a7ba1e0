"""Methods under test: checkpoints, selectors without a network, and the greedy oracle, all behind one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from autogaze.core.gaze import Gaze
from autogaze.core.grid import PatchGrid
from autogaze.evaluate.oracle import GreedyOracle
from autogaze.model import AutoGaze
from autogaze.pretrain.reconstructor.network import Reconstructor
from autogaze.selectors import SELECTORS, make_selector

NETWORK, SELECTOR, ORACLE = "network", "selector", "oracle"  # what a method is
UNTRAINED = "untrained"


@dataclass(frozen=True)
class Method:
    """Something that chooses patches."""

    name: str
    sort: str  # NETWORK, SELECTOR or ORACLE
    choose: Callable[[Tensor, float, torch.Generator], Gaze]  # (video, gazing_ratio, generator)
    model: AutoGaze | None = None  # of a network


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
    return Method("oracle", ORACLE, GreedyOracle(reconstructor))


def make_methods(
    checkpoints: Sequence[str], against: Sequence[str], reconstructor: Reconstructor, device: torch.device | str
) -> list[Method]:
    """Methods from what the command line names.

    Args:
        checkpoints: folders, names or hub ids, each optionally as label=checkpoint; listed from weak to strong.
        against: names of selectors, "untrained" (the first checkpoint's architecture, random weights), "oracle".
        reconstructor: the judge.
        device: where models run.

    Raises:
        ValueError: if two methods have the same name, a selector is unknown, or "untrained" has no architecture.
    """
    models = {label: AutoGaze.from_pretrained(folder, device=device) for label, folder in map(parse_label, checkpoints)}
    if UNTRAINED in against:
        if not models:
            raise ValueError("untrained needs a --checkpoint, whose architecture it takes")
        models = {UNTRAINED: untrained(next(iter(models.values()))), **models}
    names = [name for name in against if name not in (UNTRAINED, "oracle")]
    methods = [selector_method(name, reconstructor.grid) for name in names]
    methods += [model_method(name, model, reconstructor.grid) for name, model in models.items()]
    if "oracle" in against:
        methods.append(oracle_method(reconstructor))
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
    """What `against` may name."""
    return (*SELECTORS, UNTRAINED, "oracle")
