"""The request of a caller: a budget and a requirement for every frame of every clip, and which ids are allowed.

A clip is decoded as if it were alone, always: what is chosen in it depends neither on the clips beside it nor on
what is asked of them. This is what a batch of one gives. Published models decode a batch in step: there a clip
that ends a frame early goes on with padding while the others do, which its later frames see. That is left out here
on purpose; published results are met clip by clip (`tests/compat`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from autogaze.core.grid import PatchGrid
from autogaze.decoding.limits import PerFrame, check_ratios, numbers
from autogaze.network.config import AutoGazeConfig


@dataclass(frozen=True, eq=False)
class Request:
    """Budget and stop rule of each frame."""

    budget: Tensor  # (B, T) int64, ids a frame may spend, 0 <= budget <= patches_per_frame
    requirement: Tensor | None = None  # (B, T) float32, stop once the predicted loss is at most this
    temperature: float | None = None  # None: arg-max; a number: sample
    generator: torch.Generator | None = None
    allowed: Tensor | None = None  # (P,) bool, ids that may be chosen; None: all

    @property
    def uniform(self) -> bool:
        """Whether every clip of the batch spends the same number of ids in every frame."""
        return len(self.budget) == 1 or (self.requirement is None and bool((self.budget == self.budget[:1]).all()))

    def clips(self, which: slice) -> Request:
        """The request of some clips."""
        requirement = None if self.requirement is None else self.requirement[which]
        return replace(self, budget=self.budget[which], requirement=requirement)

    def clip(self, index: int) -> Request:
        """The request of one clip."""
        return self.clips(slice(index, index + 1))

    def frames(self, start: int, stop: int) -> Request:
        """The request of some frames."""
        requirement = None if self.requirement is None else self.requirement[:, start:stop]
        return replace(self, budget=self.budget[:, start:stop], requirement=requirement)

    def calibrated(self, config: AutoGazeConfig) -> Request:
        """The request with the requirement as the loss that a model predicts where the true one meets it."""
        requirement = None if self.requirement is None else config.threshold(self.requirement)
        return replace(self, requirement=requirement)

    def repeated(self, times: int) -> Request:
        """The request with every clip `times` times in a row, one for each of its tiles."""
        requirement = None if self.requirement is None else self.requirement.repeat_interleave(times, 0)
        return replace(self, budget=self.budget.repeat_interleave(times, 0), requirement=requirement)


def spread(value: PerFrame, batch: int, frames: int, name: str) -> Tensor | None:
    """A (B, T) float64 CPU tensor of a number, a value per frame (T,), per clip (B, 1), or both (B, T).

    Shape decides, whatever the container. One dimension is one a frame (T,); B values where B is not T are taken as
    one a clip. Where B = T > 1 the two readings differ, and one dimension is refused.
    """
    tensor = numbers(name, value)
    if tensor is None:
        return None
    shapes = (
        f"a number, ({frames},) or (1, {frames}) for one a frame, ({batch}, 1) for one a clip, or ({batch}, {frames})"
    )
    if tensor.ndim == 1 and len(tensor) == batch == frames > 1:
        raise ValueError(
            f"{name} with {batch} values could mean one a frame or one a clip, as there are {batch} of both: "
            f"give it the shape (1, {frames}) for frames or ({batch}, 1) for clips"
        )
    if tensor.ndim == 1 and len(tensor) == batch:
        tensor = tensor[:, None]
    fits = tensor.ndim <= 1 or tensor.ndim == 2 and tensor.shape[0] in (1, batch)
    if not fits or (tensor.ndim and tensor.shape[-1] not in (1, frames)):
        raise ValueError(f"{name} must be {shapes}, got shape {tuple(tensor.shape)}")
    return tensor.expand(batch, frames)


def make_request(
    grid: PatchGrid,
    batch: int,
    frames: int,
    gazing_ratio: PerFrame = None,
    task_loss_requirement: PerFrame = None,
    temperature: float | None = None,
    generator: torch.Generator | None = None,
    scales: Sequence[int] | int | None = None,
) -> Request:
    """Check and spread what a caller asked for.

    Args:
        scales: sizes in pixels of the scales whose ids may be chosen; None: all. The budget stays a share of all ids of
            the grid, up to as many as there are to choose from.

    Raises:
        ValueError: on a ratio outside [0, 1] (0: look at nothing), a shape that fits neither frames nor clips,
            a temperature that is not positive, or a scale that the grid does not have.
    """
    if temperature is not None and (isinstance(temperature, bool | str) or not temperature > 0):
        raise ValueError(f"temperature must be positive (None chooses the best id), got {temperature!r}")
    ratio = spread(1.0 if gazing_ratio is None else gazing_ratio, batch, frames, "gazing_ratio")
    assert ratio is not None
    check_ratios(ratio)
    slack = 1e-7  # 0.7 is 0.69999999 in float32 and must not lose an id
    budget = ((ratio + slack) * grid.patches_per_frame).long().clamp(1, grid.patches_per_frame) * (ratio > 0)
    requirement = spread(task_loss_requirement, batch, frames, "task_loss_requirement")
    requirement = None if requirement is None else requirement.float()
    allowed = allowed_ids(grid, scales)
    if allowed is not None:
        budget = budget.clamp(max=int(allowed.sum()))
    return Request(budget, requirement, temperature, generator, allowed)


def allowed_ids(grid: PatchGrid, scales: Sequence[int] | int | None) -> Tensor | None:
    """(P,) bool: the ids of some scales, given in pixels; None where that is all of them.

    Raises:
        ValueError: if there is no such scale, or none is given.
    """
    if scales is None:
        return None
    asked = {scales} if isinstance(scales, int) else set(scales)
    if not asked or not asked <= set(grid.scales):
        raise ValueError(f"scales must be some of the grid's {grid.scales} (pixels), got {scales}")
    kept = torch.tensor([scale in asked for scale in grid.scales], device="cpu")
    return None if bool(kept.all()) else kept.repeat_interleave(torch.tensor(grid.patches_per_scale, device="cpu"))
