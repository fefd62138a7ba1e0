"""Times of the phases of a training step, without making the GPU wait."""

from __future__ import annotations

import time
from typing import Any

import torch


class PhaseClock:
    """Marks the ends of phases; on CUDA the marks are events that are read a step later, when they have passed."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = []  # a phase with its event on a GPU, with seconds elsewhere

    def mark(self, phase: str) -> None:
        """The phase ends here; the first mark only starts the clock."""
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((phase, event))
        else:
            self._marks.append((phase, time.perf_counter()))

    def read_ms(self) -> dict[str, float]:
        """Milliseconds of every phase since the last reading; waits for the last mark, which starts the next one."""
        marks = self._marks
        self.forget()
        if self._cuda and marks:
            marks[-1][1].synchronize()
        spent: dict[str, float] = {}
        for (_, start), (phase, end) in zip(marks, marks[1:], strict=False):
            length = start.elapsed_time(end) if self._cuda else (end - start) * 1e3
            spent[phase] = spent.get(phase, 0.0) + length
        return spent

    def forget(self) -> None:
        """Drop all marks but the last."""
        self._marks = self._marks[-1:]
