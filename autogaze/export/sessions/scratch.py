"""Scratch memory of TensorRT's calls, which they need beside their tensors and leave nothing in.

All engines and streams on one GPU share it: as much as the largest call so far needed. Calls in several CUDA streams
use it one after the other; each waits for the one before on the GPU, not on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

_OF_DEVICE: WeakValueDictionary[torch.device, Scratch] = WeakValueDictionary()
_FINDING = Lock()


class Scratch:
    """The scratch memory of one GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._memory: Tensor | None = None
        self._done: Any = None  # event after the last call
        self._one_at_a_time = Lock()

    @classmethod
    def of(cls, device: torch.device) -> Scratch:
        """The one that everybody on this GPU uses; it goes with its last user."""
        with _FINDING:
            found = _OF_DEVICE.get(device)
            if found is None:
                found = _OF_DEVICE[device] = cls(device)
            return found

    def use(self, size: int, stream: torch.cuda.Stream, enqueue: Callable[[int, int], None]) -> None:
        """Put work that needs scratch into a stream, which is torch's current one.

        Args:
            size: bytes that the work needs.
            enqueue: is given address and bytes of the memory.
        """
        with self._one_at_a_time:
            if self._done is not None:
                stream.wait_event(self._done)
            if self._memory is None or self._memory.numel() < size:
                self._memory = None  # before the larger one is made: torch may use its room again
                self._memory = torch.empty(max(size, 1), dtype=torch.uint8, device=self.device)
            self._memory.record_stream(stream)  # it was made for the stream that needed most
            enqueue(self._memory.data_ptr(), self._memory.numel())
            self._done = stream.record_event(self._done)
