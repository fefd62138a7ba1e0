"""Names of what goes into an exported file and comes out of it; `docs/formats.md` says what each is."""

from __future__ import annotations

from dataclasses import dataclass

import torch

CALL = ("frame", "frames", "budget", "requirement", "in_step")  # of one call; every other input is a stream's memory
GAZE = ("ids", "chosen", "task_loss", "count")


@dataclass(frozen=True)
class TensorSpec:
    """Name, element type and shape of an input or output; the batch comes first."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]  # without the batch


def state_of(inputs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """A stream's memory among the inputs of a file, zeros at its start; the outputs that follow are `next_` and its
    name."""
    return tuple(spec for spec in inputs if spec.name not in CALL)
