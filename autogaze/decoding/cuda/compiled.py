"""All that any shape of clips can need of Triton's compiler, ahead of time and side by side.

A kernel is compiled once for the model, the dtype and the block sizes of `tuning.py`, not for clips, frames, budgets or
lengths of windows. So there are few variants; all of them are compiled when the first clip comes, and a shape
that was never seen costs no more than its buffers and graphs. Triton keeps what it compiled on disk
(TRITON_CACHE_DIR), for later processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from autogaze.decoding.cuda.buffers import Buffers, Plan
from autogaze.decoding.cuda.tuning import tune
from autogaze.decoding.cuda.workspace import FEW_SLOTS, Workspace

if TYPE_CHECKING:
    from autogaze.model import AutoGaze

MOST_CLIPS = 512  # from some hundred on block sizes stay the same
Variant = tuple[Any, tuple[int, ...], tuple[Any, ...], dict[str, Any]]  # kernel, grid, arguments, constants


def plans(model: AutoGaze, dtype: torch.dtype, samples: bool) -> Iterator[Plan]:
    """One plan for every choice of block sizes that clips can lead to."""
    few, most = model.gaze_decoder.group, model.grid.patches_per_frame + model.gaze_decoder.group
    heads, rows, seen = model.config.num_attention_heads, model.gaze_decoder.group + model.visual_tokens, set()
    for batch in range(1, MOST_CLIPS + 1):
        tunings = tune(batch, rows, dtype, True), tune(batch, few, dtype, False)
        splits = (batch * heads * -(-rows // tunings[0].queries) >= 1024, batch * heads >= 1024)
        if (tunings, splits) not in seen:
            seen.add((tunings, splits))
            for slots in {few, most} if most > FEW_SLOTS else {few}:
                yield Plan(batch, model.config.max_num_frames, slots, dtype, False, samples)


def variants(
    model: AutoGaze, weights: dict[str, Tensor], dtype: torch.dtype, samples: bool = False, early: bool | None = None
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


def compile_all(wanted: list[Variant]) -> None:
    """Compile variants for the present device, or find them on disk."""
    try:
        from triton.runtime._async_compile import AsyncCompileMode
    except ImportError:  # an older version compiles one after the other
        mode: Any = nullcontext
    else:
        mode = AsyncCompileMode
    with ThreadPoolExecutor(os.cpu_count()) as executor, mode(executor):
        for kernel, grid, arguments, constants in wanted:
            kernel.warmup(*arguments, grid=grid, **constants)
