"""A measured time, the machine it was measured on, and how the clock is read."""

from __future__ import annotations

import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Wall-clock cost of one call; units are in the names."""

    name: str
    runs: int
    median_ms: float
    p95_ms: float
    peak_memory_mib: float | None  # None off the GPU
    processor_ms: float | None = None  # of all threads, which other programs do not change much; None on a GPU


def measure(name: str, call: Callable[[], object], device: torch.device, runs: int = 20, warmup: int = 3) -> Timing:
    """Time `call`: CUDA events on a GPU, the host clock elsewhere; median and 95th percentile of `runs`.

    Elsewhere its median processor time too.
    """
    for _ in range(warmup):
        call()
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    both = [_once(call, cuda) for _ in range(runs)]
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if cuda else None
    times, processor = sorted(one[0] for one in both), None if cuda else statistics.median(one[1] for one in both)
    late = times[min(len(times) - 1, int(0.95 * len(times)))]
    return Timing(name, runs, statistics.median(times), late, peak, processor)


def _once(call: Callable[[], object], cuda: bool) -> tuple[float, float]:
    """Milliseconds of one call: on the clock, and of the processors (0 on a GPU)."""
    if not cuda:
        start, used = time.perf_counter(), time.process_time()
        call()
        return (time.perf_counter() - start) * 1e3, (time.process_time() - used) * 1e3
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end), 0.0


def machine() -> dict[str, object]:
    """Device, versions and commit, for the head of a results file."""
    cuda = torch.cuda.is_available()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "python": platform.python_version(),
        "commit": commit or None,
        "date": time.strftime("%Y-%m-%d"),
    }
