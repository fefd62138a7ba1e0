"""All that any shape of clips can need of Triton's compiler, ahead of time and side by side.

A kernel is compiled once for the model, the dtype and the block sizes of `tuning.py`, not for clips, frames, budgets or
lengths of windows. So there are few variants; all of them are compiled when the first clip comes, and a shape
that was never seen costs no more than its buffers and graphs. Triton keeps what it compiled on disk
(TRITON_CACHE_DIR), for later processes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from autogaze.decoding.cuda import cluster
from autogaze.decoding.cuda.buffers import Buffers, Plan
from autogaze.decoding.cuda.tuning import ceil, frames_a_split, room_for_splits, tune
from autogaze.decoding.cuda.workspace import FEW_SLOTS, Workspace, can_launch_early
from autogaze.network.network import GazeNetwork

MOST_CLIPS = 512  # from some hundred on block sizes stay the same
Variant = tuple[Any, tuple[int, ...], tuple[Any, ...], dict[str, Any]]  # kernel, grid, arguments, constants


def plans(model: GazeNetwork, dtype: torch.dtype, samples: bool) -> Iterator[Plan]:
    """One plan for every choice of block sizes that clips can lead to."""
    config, few, window = model.config, model.gaze_decoder.group, model.config.max_num_frames
    rows, most, seen = few + model.visual_tokens, model.grid.patches_per_frame + few, set()
    for batch, ring in product(range(1, MOST_CLIPS + 1), range(2, window + 2)):
        tunings = tune(batch, rows, dtype, True), tune(batch, few, dtype, False)
        tiles, heads = ((rows, tunings[0].queries), (16, 16)), config.num_attention_heads
        splits = tuple(ceil(ring, frames_a_split(batch, heads, *tile, ring)) for tile in tiles)
        if (kind := (tunings, *(room_for_splits(count, window) for count in splits))) not in seen:
            seen.add(kind)
            for slots in {few, most} if most > FEW_SLOTS else {few}:
                yield Plan(batch, ring, slots, dtype, False, samples)


def variants(
    model: GazeNetwork, weights: dict[str, Tensor], dtype: torch.dtype, samples: bool = False, early: bool | None = None
) -> list[Variant]:
    """Every kernel with every set of constants that a model needs in a dtype, with arguments of the right types.

    Args:
        model, dtype: whose clips are decoded, and how.
        weights: as `lay_out` returns them.
        samples: with a temperature.
        early: as of `Workspace`.
    """
    found: dict[object, Variant] = {}

    def collect(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        kinds = tuple(each.dtype if isinstance(each, Tensor) else each for each in arguments)
        types = tuple(kind if isinstance(kind, torch.dtype) else type(kind) for kind in kinds)
        found.setdefault((kernel, types, tuple(sorted(constants.items()))), (kernel, grid, kinds, constants))

    for plan in plans(model, dtype, samples):
        space = Workspace(Buffers(model, weights, plan, "meta"), early, collect)
        space.launch(prefill=True)
        space.launch(prefill=False)
        space.look()
    return list(found.values())


def compile_all(wanted: list[Variant]) -> list[Any]:
    """Compile variants for the present device, or find them on disk: Triton's compiled kernels."""
    try:
        from triton.runtime._async_compile import AsyncCompileMode
    except ImportError:  # an older version compiles one after the other
        mode: Any = nullcontext
    else:
        mode = AsyncCompileMode
    with ThreadPoolExecutor(os.cpu_count()) as executor, mode(executor):
        found = [kernel.warmup(*arguments, grid=grid, **constants) for kernel, grid, arguments, constants in wanted]
    return [kernel.result() if hasattr(kernel, "result") else kernel for kernel in found]


def load_all(kernels: list[Any], device: torch.device) -> None:
    """Put compiled kernels on a device. A C compiler makes what launches each of them, if that is not on disk either;
    Triton would wait for it at the first launch, kernel after kernel."""

    def load(kernel: Any) -> None:
        with torch.cuda.device(device):
            kernel.run  # noqa: B018  a property that loads

    with ThreadPoolExecutor(os.cpu_count()) as executor:
        list(executor.map(load, kernels))


_lock = threading.Lock()
_prepared: set[object] = set()


def prepare(model: GazeNetwork, weights: dict[str, Tensor], dtype: torch.dtype, samples: bool) -> None:
    """Compile all that clips of any shape can need of a model on its device; does nothing the second time."""
    device, config = model.device, model.config
    key = (device, replace(config, calibration=()), dtype, samples)
    with _lock:
        if key in _prepared:
            return
        few, early = dtype == torch.bfloat16 and not samples, can_launch_early(device)
        with torch.cuda.device(device), ThreadPoolExecutor(1) as executor:
            besides = executor.submit(cluster.why_not, device, cluster.shape_for(config)) if few else None
            load_all(compile_all(variants(model, weights, dtype, samples, early)), device)
            if besides is not None:
                besides.result()
        _prepared.add(key)
