"""Names of what goes into an exported file and comes out of it; `docs/formats.md` says what each is."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# A stream's memory; outputs are called next_conv, ... Only files of models that remember what they saw have `seen`.
STATE = ("conv", "keys", "values", "places", "last_ids", "seen")
GAZE = ("ids", "chosen", "task_loss", "count")


@dataclass(frozen=True)
class TensorSpec:
    """Name, element type and shape of an input or output; the batch comes first."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]  # without the batch
