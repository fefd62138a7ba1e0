"""Triton's kernels of a model, compiled in processes of their own.

Triton's compiler holds Python's lock, so threads take turns at it: 42 kernels took 24 s on a machine of 16 processors.
Processes do not, and leave what they compiled in Triton's cache on disk, where this one finds it. They get no device:
the target is all that a compiler needs to know.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import torch

from autogaze.network.config import AutoGazeConfig

WORKER = "autogaze.decoding.cuda.compiled"  # the module that each process runs
PROCESSES = 8  # at most: each holds a copy of PyTorch in memory, and each takes seconds to start


def compile_apart(config: AutoGazeConfig, dtype: str, samples: bool, early: bool, capability: int) -> None:
    """Fill Triton's cache side by side, unless that was done before. What fails is compiled by the caller, who will
    see why.

    Args:
        config: of the model.
        dtype: that it computes in, "float32" or "bfloat16".
        samples, early: as of `compiled.variants`.
        capability: of the device, such as 90.
    """
    wanted = (config, dtype, samples, early, capability)
    count, python = min(PROCESSES, os.cpu_count() or 1), sys.executable or ""
    done = _cache() / f"autogaze-{_hash(wanted)}.done"
    if count < 2 or done.exists() or not Path(python).name.startswith("python"):  # embedded: another program
        return
    root = str(Path(__file__).resolve().parents[3])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""}
    text, quiet = pickle.dumps(wanted).hex(), subprocess.DEVNULL
    started: list[subprocess.Popen[bytes]] = []
    try:
        for index in range(count):
            command = [python, "-m", WORKER, text, str(index), str(count)]
            started.append(subprocess.Popen(command, env=environment, stdin=quiet, stdout=quiet, stderr=quiet))
        if all([process.wait() == 0 for process in started]):
            done.touch()
    except OSError:
        pass  # no process can be started, or the cache is not to be written
    finally:
        for process in started:
            process.kill()


def _cache() -> Path:
    """Triton's cache on disk."""
    home = Path(os.environ.get("TRITON_HOME") or Path.home())
    return Path(os.environ.get("TRITON_CACHE_DIR") or home / ".triton" / "cache")


def _hash(wanted: tuple[object, ...]) -> str:
    """Changes with whatever changes the machine code."""
    import triton

    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.rglob("*.py")))
    named = repr((wanted, torch.__version__, triton.__version__)).encode()
    return hashlib.sha256(named + sources).hexdigest()[:16]
