"""Imports that are not searched for garbage.

Modules stay until the process ends. PyTorch and Lightning make about a million objects, and Python looks through all of
them again and again while they are imported, and once more at the end: 0.6 of 1.9 s for PyTorch, 2.8 of 8.4 with
Lightning.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_used = False  # in this process


@contextmanager
def imports_kept() -> Iterator[None]:
    """Leave alone what is made in this block, and all that is there at its end; for processes of our own only."""
    if not gc.isenabled():  # somebody else's choice
        yield
        return
    _begin()
    try:
        yield
    finally:
        end_imports()


class ImportsKept:
    """Pickled for a new process, in front of other things: importing what they need is not searched for garbage there
    until `end_imports`."""

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _begin, ()


def end_imports() -> None:
    """Keep what is there, and search what comes."""
    gc.freeze()
    gc.enable()


def keeps_imports() -> bool:
    """Whether this process has left imports alone before."""
    return _used


def _begin() -> None:
    global _used
    _used = True
    gc.disable()
