"""Kernels are compiled for a few block sizes of a model, not the shape of its clips. No GPU is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton comes with CUDA builds of PyTorch only")
ROOT = Path(__file__).resolve().parents[3]


def run(cache: Path, *arguments: str) -> dict:
    """The result of `compile_ahead`, in a process of its own: it gives Triton a device that is not there."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.decoding.cuda.compile_ahead", *arguments],
        cwd=ROOT,
        capture_output=True,
        env={**os.environ, "TRITON_CACHE_DIR": str(cache)},
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_clips_of_any_shape_need_what_is_compiled_ahead(dtype: str, tmp_path: Path) -> None:
    """Batches, frames, budgets and windows of all sizes: every kernel they launch has been compiled."""
    found = run(tmp_path, "count", dtype)
    assert found["shapes"] > 300 and found["missing"] == []
    assert found["variants"] <= 45


def test_every_kernel_compiles_for_hopper(tmp_path: Path) -> None:
    """Of a small model, whose tiles are small; the interpreter takes more than the compiler does."""
    assert run(tmp_path, "compile", "bfloat16")["compiled"] >= 20
