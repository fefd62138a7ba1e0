"""What a caller asks of decoding: a budget and a requirement for every frame of every clip, and which ids are allowed.

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

PerFrame = float | Sequence[float] | Tensor | None  # a number, per frame (T,), per clip (B,), or both (B, T)


@dataclass(frozen=True, eq=False)
class Request:
    """How far each frame may go and when it may stop."""

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

    def repeated(self, times: int) -> Request:
        """The request with every clip `times` times in a row, one for each of its tiles."""
        requirement = None if self.requirement is None else self.requirement.repeat_interleave(times, 0)
        return replace(self, budget=self.budget.repeat_interleave(times, 0), requirement=requirement)


def spread(value: PerFrame, batch: int, frames: int, name: str) -> Tensor | None:
    """A (B, T) float64 CPU tensor of a number, a value per frame, per clip, or both.

    A Python sequence of length T is per frame (the published form), else per clip; a 1-D tensor of length B is
    per clip, else per frame. The two readings differ only where B = T.
    """
    if value is None:
        return None
    if isinstance(value, Tensor):
        tensor = value.detach().to("cpu", torch.float64)
    else:
        tensor = torch.as_tensor(value, dtype=torch.float64, device="cpu")
    if tensor.ndim == 1:
        order = ((batch, 1), (1, frames)) if isinstance(value, Tensor) else ((1, frames), (batch, 1))
        shape = next((shape for shape in order if len(tensor) == shape[0] * shape[1]), None)
        if shape is None:
            raise ValueError(
                f"{name} has {len(tensor)} values; give one number, {frames} (one a frame), "
                f"{batch} (one a clip) or ({batch}, {frames})"
            )
        tensor = tensor.reshape(shape)
    fits = tensor.ndim == 0 or (tensor.ndim == 2 and tensor.shape[0] in (1, batch) and tensor.shape[1] in (1, frames))
    if not fits:
        raise ValueError(
            f"{name} must be a number, one a frame, one a clip or ({batch}, {frames}), got {tuple(tensor.shape)}"
        )
    if bool(tensor.isnan().any()):
        raise ValueError(f"{name} must not be NaN")
    return tensor.expand(batch, frames)


def make_request(
    grid: PatchGrid,
    batch: int,
    frames: int,
    gazing_ratio: PerFrame = None,
    task_loss_requirement: PerFrame = None,
    temperature: float | None = None,
    generator: torch.Generator | None = None,
    scales: Sequence[int] | None = None,
) -> Request:
    """Check and spread what a caller asked for.

    Args:
        scales: sizes in pixels of the scales whose ids may be chosen; None: all. The budget stays a share of all ids of
            the grid, up to as many as there are to choose from.

    Raises:
        ValueError: on a ratio outside [0, 1] (0: look at nothing), a shape that fits neither frames nor clips,
            a temperature that is not positive, or a scale that the grid does not have.
    """
    if temperature is not None and not temperature > 0:
        raise ValueError(f"temperature must be positive (None chooses the best id), got {temperature}")
    ratio = spread(1.0 if gazing_ratio is None else gazing_ratio, batch, frames, "gazing_ratio")
    assert ratio is not None
    if bool(((ratio < 0) | (ratio > 1)).any()):
        raise ValueError(f"gazing_ratio must be in [0, 1], got {ratio.min():g} to {ratio.max():g}")
    single = isinstance(gazing_ratio, Tensor) and gazing_ratio.dtype != torch.float64
    slack = 1e-7 if single else 0.0  # 0.7 is 0.69999999 in float32 and must not lose an id
    budget = ((ratio + slack) * grid.patches_per_frame).long().clamp(1, grid.patches_per_frame) * (ratio > 0)
    requirement = spread(task_loss_requirement, batch, frames, "task_loss_requirement")
    requirement = None if requirement is None else requirement.float()
    allowed = allowed_ids(grid, scales)
    if allowed is not None:
        budget = budget.clamp(max=int(allowed.sum()))
    return Request(budget, requirement, temperature, generator, allowed)


def allowed_ids(grid: PatchGrid, scales: Sequence[int] | None) -> Tensor | None:
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
