"""Processes of `test_ranks` that are to end with their parent; it needs nothing that is slow to import."""

from __future__ import annotations

import os
import time
from pathlib import Path

from autogaze.training.launch import launch  # noqa: F401 (called by the parent)


def sleep(folder: Path) -> None:
    """Write down which process this is, and do nothing that would notice the death of its parent."""
    (folder / os.environ["RANK"]).write_text(str(os.getpid()))
    time.sleep(1000)
