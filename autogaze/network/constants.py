"""Tensors that follow from a config and are no part of a checkpoint, such as tables and rotary frequencies.

They are computed on the CPU, whatever device is the default, and copied to a device when they are first used there.
So they are right however the weights came: `from_pretrained`, `to_empty`, `load_state_dict(assign=True)`, or a model
that was built on the meta device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Constants:
    """Named tensors, on the device that asks."""

    def __init__(self, **tensors: Tensor) -> None:
        self._originals = tensors  # on the CPU
        self._copies: dict[torch.device, dict[str, Tensor]] = {}

    def on(self, device: torch.device) -> dict[str, Tensor]:
        """The tensors by name."""
        if device.type == "cpu":
            return self._originals
        found = self._copies.get(device)
        if found is None:
            with torch.inference_mode(False):  # or no gradient could flow through what is made of them
                found = {name: tensor.to(device) for name, tensor in self._originals.items()}
            self._copies = {device: found}
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {"_originals": self._originals, "_copies": {}}
