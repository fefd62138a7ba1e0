"""The CUDA stream that an exported file works in, as its caller named it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def named_stream(stream: Any, device: torch.device) -> torch.cuda.Stream | None:
    """The stream of a caller: torch's, a handle (cudaStream_t as a number), or None for torch's current one."""
    if device.type != "cuda":
        return None
    if stream is None:
        return torch.cuda.current_stream(device)
    return torch.cuda.ExternalStream(stream, device=device) if isinstance(stream, int) else stream


@contextmanager
def working_in(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """Let torch work in a stream, after what the current one has been told to do. None: on a CPU."""
    if stream is None:
        yield
        return
    current = torch.cuda.current_stream(stream.device)
    if current.cuda_stream != stream.cuda_stream:
        stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
