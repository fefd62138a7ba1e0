"""The clips that a run's models are compared on at its end, and those that their stop rule is calibrated on.

Every video is taken twice: with frames spread over it, as evaluation takes them, and with neighbouring frames.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from autogaze.media.video import VideoError
from autogaze.pipeline.stages import Run, device
from autogaze.stop_rule.calibration import Sampling
from autogaze.training.data.augment import plain_recipe
from autogaze.training.data.clip import ClipRecipe
from autogaze.training.data.index import ClipFile
from autogaze.training.data.manifest import clip_facts
from autogaze.training.data.sources import RunClips
from autogaze.training.recipes import PretrainRecipe

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Samplings:
    """Clips of some videos on the device, taken in both ways."""

    spread: Sampling  # frames spread over each video: what models are compared on
    closer: Sampling  # neighbouring frames of the same videos: the stop rule must hold for them as well

    def __add__(self, other: Samplings) -> Samplings:
        return Samplings(
            *(
                Sampling([*mine.clips, *its.clips], [*mine.sources, *its.sources])
                for mine, its in ((self.spread, other.spread), (self.closer, other.closer))
            )
        )


class RunSamplings:
    """Takes clips of a run's videos.

    Args:
        run: whose data.
        recipe: frames of a clip, how many are held out, clips a batch.
    """

    def __init__(self, run: Run, recipe: PretrainRecipe) -> None:
        self.data = RunClips(
            run.data, run.folder, replace(recipe, photo_share=0.0), recipe.batch_clips, recipe.validate_clips
        )
        self.folder = self.data.index.folder
        self.data.resident = False  # each video is read twice at most
        self.damaged: set[str] = set()

    @cached_property
    def held_out(self) -> Samplings:
        """The validation clips.

        Raises:
            ValueError: if none of them can be decoded.
        """
        files = self.data.validation
        taken = self._taken(files)
        if not taken.spread.clips:
            raise ValueError(f"none of the {len(files)} validation clips of {self.folder} can be decoded")
        return taken

    def learned_from(self, most: int) -> Samplings:
        """Up to so many training videos, evenly over their list."""
        files = [file for file in self.data.videos if file not in self.data.validation]
        step = max(1.0, len(files) / max(1, most))
        return self._taken([files[int(k * step)] for k in range(min(len(files), most))])

    def _taken(self, files: Sequence[ClipFile]) -> Samplings:
        spread = [plain_recipe(file, self.data.frames) for file in files]
        return Samplings(
            self._rendered(spread), self._rendered([neighbouring(one) for one in spread if one.stride > 1])
        )

    def _rendered(self, recipes: list[ClipRecipe]) -> Sampling:
        """One by one: a clip that cannot be decoded is left out, by name, and ends no run that has been trained."""
        clips, sources, size = [], [], self.data.batch_clips
        for recipe in recipes:
            if recipe.name in self.damaged:
                continue
            try:
                clips.append(self.data.render([recipe], device()).video)
            except (VideoError, OSError) as error:
                log.warning("skipped %s: %s", recipe.name, error)
                self.damaged.add(recipe.name)
                continue
            sources.append(clip_facts(self.folder, self.folder / recipe.name)[1])
        return Sampling([torch.cat(clips[i : i + size]) for i in range(0, len(clips), size)], sources)


def neighbouring(recipe: ClipRecipe) -> ClipRecipe:
    """Frames next to each other in the middle of what a recipe spreads its frames over."""
    return replace(recipe, start=recipe.start + (recipe.frames - 1) * (recipe.stride - 1) // 2, stride=1)
