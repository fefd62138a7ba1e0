"""Summary of a run: reconstruction loss at one ratio on held-out clips, for each stage and what it must beat."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from autogaze.core.gaze import Gaze
from autogaze.model import AutoGaze
from autogaze.pretrain.judge import AnyJudge
from autogaze.selectors import Selector, make_selector

RATIO = 0.1
WITHOUT_NETWORK = ("random", "difference")
UNTRAINED, UNTRAINED_WITHOUT_MAP = "untrained", "untrained, no residual map"
SAME = 0.02  # losses that differ by less are called equal: a few clips tell no finer


@dataclass(frozen=True)
class Summary:
    """Mean reconstruction loss on the val split; lower is better."""

    gazing_ratio: float
    clips: int
    reconstruction_loss: dict[str, float]  # of the trained model, its earlier stages, and selectors
    dense: float  # of looking at everything: nothing can be better
    held_out: bool = True  # False: there was no validation clip, these are training clips
    kept: str = ""  # the model in RUN/model, of those in `reconstruction_loss`

    def lines(self) -> str:
        """A small table."""
        clips = "held-out clips" if self.held_out else "training clips, since none is held out"
        rows = [f"reconstruction loss at gazing ratio {self.gazing_ratio} on {self.clips} {clips}"]
        width = max(map(len, self.reconstruction_loss))
        rows += [
            f"  {name:<{width}}  {loss:.4f}"
            for name, loss in sorted(self.reconstruction_loss.items(), key=lambda item: item[1])
        ]
        rows.append(f"  {'(everything)':<{width}}  {self.dense:.4f}")
        return "\n".join([*rows, *([self.why()] if self.kept else [])])

    def why(self) -> str:
        """A line on which model was kept, why, and how it stands beside an untrained one and a frame difference."""
        losses = self.reconstruction_loss
        stages = [name for name in losses if name.startswith("NTP")]
        why = f"the lowest of {' and '.join(stages)}" if len(stages) > 1 else "the only trained one"
        beside = []
        for name in (UNTRAINED_WITHOUT_MAP, UNTRAINED, "difference"):
            if name in losses and name != self.kept:
                share = losses[self.kept] / losses[name] - 1
                beside.append(f"{abs(share):.1%} {'below' if share < 0 else 'above'} that of {name!r}")
        said = f"kept {self.kept}, {why}: its loss is {' and '.join(beside)}"
        if UNTRAINED_WITHOUT_MAP in losses and abs(losses[self.kept] / losses[UNTRAINED] - 1) < SAME:
            said += (
                "\nnearly all of it comes from the residual map, which needs no training; what training adds to it "
                "shows in long runs, with noise, and in what ViTs see (docs/training.md)"
            )
        return said


def _choose(selector: Selector, ratio: float, random: torch.Generator, video: Tensor) -> Gaze:
    return selector(video, ratio, random)


def summarise(
    models: Mapping[str, AutoGaze], judge: AnyJudge, clips: Sequence[Tensor], ratio: float = RATIO
) -> Summary:
    """Compare models, and selectors without a network, on the same clips.

    Args:
        models: name -> model, on the device of the clips.
        judge: tells the loss.
        clips: batches (B, T, 3, H, W) float.
        ratio: gazing ratio of every frame.
    """
    grid = next(iter(models.values())).grid
    random = torch.Generator().manual_seed(0)
    select: dict[str, Callable[[Tensor], Gaze]] = {
        name: partial(model.generate, gazing_ratio=ratio) for name, model in models.items()
    }
    for name in WITHOUT_NETWORK:
        chooser = make_selector(name, grid)
        select[name] = partial(_choose, chooser, ratio, random)
    losses = {name: mean_loss(judge, clips, way) for name, way in select.items()}
    everything = mean_loss(
        judge,
        clips,
        lambda video: Gaze.from_patch_mask(
            torch.ones(*video.shape[:2], grid.patches_per_frame, dtype=torch.bool, device=video.device), grid
        ),
    )
    return Summary(ratio, sum(map(len, clips)), losses, everything)


def mean_loss(judge: AnyJudge, clips: Sequence[Tensor], select: Callable[[Tensor], Gaze]) -> float:
    """Mean over clips and frames of the loss of what `select` chooses."""
    losses = [judge.losses(video, select(video)).mean(1) for video in clips]
    return float(torch.cat(losses).mean())
