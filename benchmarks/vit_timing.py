"""Time of one call from an idle device to an idle device, and the memory of building and running it.

`benchmarks.timing` times kernels by CUDA events; here the host's part counts too, since gazing has one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Timing:
    """Wall-clock cost of one call, from an idle device to an idle device."""

    runs: int
    median_ms: float
    p95_ms: float
    peak_memory_mib: float | None  # of building and running it, without what was there before; None off the GPU


def measure(call: Callable[[], object], device: torch.device, runs: int, before_mib: float = 0.0) -> Timing:
    """Median and 95th percentile over runs, after three for warmth."""
    for _ in range(3):
        call()
    synchronise(device)
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        synchronise(device)
        times.append((time.perf_counter() - start) * 1e3)
    peak = torch.cuda.max_memory_allocated(device) / 2**20 - before_mib if device.type == "cuda" else None
    p95 = sorted(times)[min(runs - 1, int(0.95 * runs))]
    return Timing(runs, round(statistics.median(times), 4), round(p95, 4), None if peak is None else round(peak, 1))


def graphed(call: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """The call in a CUDA graph; the call itself off the GPU."""
    if device.type != "cuda":
        return call
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call()

    def replay() -> Any:
        graph.replay()
        return kept

    return replay


def start_memory(device: torch.device) -> float:
    """Begin to watch memory; returns the MiB already in use."""
    if device.type != "cuda":
        return 0.0
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device) / 2**20


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
