"""The CUDA stream that an exported file works in, and its order with torch's current one.

Work starts after what the current stream was told before. In a stream that the caller named, the caller knows when it
is done; otherwise the current stream waits for it, so that results are used like those of any other call of torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class WorkStream:
    """A stream of its own kind: never CUDA's default one.

    The default stream cannot be captured in a graph, ONNX Runtime takes its handle (0) for "none given" and then works
    in a stream that nobody waits for, and TensorRT synchronises with it. So whoever names no stream, or the default
    one, gets a new stream that torch's current one waits for.
    """

    def __init__(self, named: Any, device: torch.device) -> None:
        """Take a caller's stream.

        Args:
            named: torch's stream, a handle (cudaStream_t as a number), or None.
            device: with its index.
        """
        handle = int(getattr(named, "cuda_stream", named or 0))
        self.joined = handle == 0  # whether torch's current stream waits for the results
        if handle == 0:
            self.stream = torch.cuda.Stream(device)
        else:
            self.stream = torch.cuda.ExternalStream(handle, device=device) if isinstance(named, int) else named
        if self.stream.device != device:
            raise ValueError(f"the CUDA stream is on {self.stream.device}, the file was to run on {device}")

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Let torch work in the stream."""
        current = torch.cuda.current_stream(self.stream.device)
        if current.cuda_stream == self.stream.cuda_stream:
            yield
            return
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            yield
        if self.joined:
            current.wait_stream(self.stream)

    def hand_over(self, tensors: Iterable[Tensor]) -> None:
        """Results made in the stream will be used in torch's current one: keep their memory until that is done."""
        current = torch.cuda.current_stream(self.stream.device)
        if current.cuda_stream != self.stream.cuda_stream:
            for tensor in tensors:
                tensor.record_stream(current)


def cuda_device(device: torch.device) -> torch.device:
    """The device with its index, which is torch's current one where none is named."""
    return torch.device("cuda", torch.cuda.current_device()) if device.index is None else device
