"""Run by test_compiled.py in a process of its own: kernels are compiled, or only named, for a GPU that is not there."""

import json
import sys
from dataclasses import replace
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from autogaze import AutoGaze
from autogaze.decoding.cuda import compiled
from autogaze.decoding.cuda.buffers import Buffers, Plan
from autogaze.decoding.cuda.weights import lay_out
from autogaze.decoding.cuda.workspace import Workspace
from autogaze.model import AutoGazeConfig

SMALL = replace(
    AutoGazeConfig.base(),
    scales=(32, 64),
    hidden_size=64,
    num_attention_heads=2,
    intermediate_size=64,
    num_hidden_layers=2,
    num_multi_token_pred=3,
)


class Hopper:
    """The answers that Triton asks of a driver before it compiles."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: object = None) -> int:
        return 0


driver.set_active(Hopper())


def key_of(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> str:
    """The key that Triton would compile for, as it finds out itself."""
    kinds = [each.dtype if isinstance(each, torch.Tensor) else each for each in arguments]
    *_, binder = kernel.device_caches[0]
    _, specialisation, options = binder(*map(kernel_mock, kinds), **constants, debug=False)
    return f"{kernel.fn.__name__} {specialisation} {sorted(options.items())}"


def kernel_mock(argument: object) -> object:
    from triton.runtime.jit import MockTensor

    return MockTensor.wrap_dtype(argument)


def count(dtype: torch.dtype) -> dict[str, object]:
    """How many variants there are, and which kernels of clips of many shapes are not among them."""
    model = AutoGaze(AutoGazeConfig.base())
    weights = lay_out(model.gaze_decoder, dtype, model.residual_map)
    ahead = {
        key_of(kernel, grid, *arguments, **constants)
        for kernel, grid, arguments, constants in compiled.variants(model, weights, dtype, early=True)
    }
    missing, shapes = set(), 0

    def look_up(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        key = key_of(kernel, grid, *arguments, **constants)
        if key not in ahead:
            missing.add(key)

    for batch in (1, 2, 3, 5, 8, 10, 11, 16, 32, 33, 43, 64, 100, 171, 213, 256, 300):
        for frames in (1, 2, 8, 12, 16, 17):
            for slots in (10, 20, 60, 70, 270):
                plan = Plan(batch, max(2, frames), slots, dtype, slots == 20, False)
                space = Workspace(Buffers(model, weights, plan, "meta"), True, look_up)
                space.launch(prefill=True)
                space.launch(prefill=False)
                space.look()
                shapes += 1
    return {"variants": len(ahead), "shapes": shapes, "missing": sorted(missing)[:3]}


def compile_small(dtype: torch.dtype) -> dict[str, object]:
    """Compile all that a small model needs for few clips and for many, once each, into machine code."""
    model = AutoGaze(SMALL)
    weights = lay_out(model.gaze_decoder, dtype, model.residual_map)
    wanted = [each for each in compiled.variants(model, weights, dtype, early=True) if each[3].get("PDL", True)]
    wanted += [each for each in compiled.variants(model, weights, dtype) if "LAST" in each[3] and "HB" in each[3]]
    kernels = compiled.compile_all(wanted)
    return {"compiled": len([each for each in kernels if each.asm["cubin"]])}


def main(task: str, dtype: str) -> None:
    print(json.dumps({"count": count, "compile": compile_small}[task](getattr(torch, dtype))))


main(*sys.argv[1:])
