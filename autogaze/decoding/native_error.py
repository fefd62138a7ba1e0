"""What is wrong with the picture of a frame, in C++ (`native/picture.h`): `ResidualMap` of frames decoded on a CPU.

In PyTorch a frame of 224 pixels costs some 7 ms on one thread, a third of what all else does; here a few tenths of one.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from autogaze.core.grid import PatchGrid
from autogaze.decoding.native_build import library
from autogaze.network.residual import LEAST_GAIN, NEVER, STALE_CAP, STALE_FLOOR, FrameResidual, ResidualMap, patch_at

PLACES_PX = (4, 8, 16, 32)  # of `with_pixels` in native/picture.h


class _Grid(ctypes.Structure):
    """`Grid` of native/picture.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("side", "cell_px", "scales", "patches")),
        *((name, ctypes.c_void_p) for name in ("blocks", "patch_at")),
        *((name, ctypes.c_double) for name in ("l1", "steps", "strength", "least", "held", "most_held")),
    ]


class Grid:
    """What the library is told about a grid and the weights of `ResidualMap`, as they are now."""

    def __init__(self, rule: ResidualMap, grid: PatchGrid) -> None:
        self.blocks, self.patch_at = torch.tensor(rule.blocks), patch_at(grid, rule.side).int()
        l1, steps = rule.weight.detach().float().clamp(min=0).tolist()
        self.call = _Grid(
            side=rule.side,
            cell_px=rule.cell_px,
            scales=len(rule.blocks),
            patches=grid.patches_per_frame,
            blocks=self.blocks.data_ptr(),
            patch_at=self.patch_at.data_ptr(),
            l1=l1,
            steps=steps,
            strength=float(rule.strength.detach()),
            least=LEAST_GAIN,
            held=STALE_FLOOR,
            most_held=STALE_CAP,
        )
        self.address = ctypes.addressof(self.call)


@dataclass(eq=False)
class NativeFrameResidual(FrameResidual):
    """One that `NativeTrunk.choose` takes ids in."""

    grid: Grid

    def clip(self, i: int) -> NativeFrameResidual:
        return NativeFrameResidual(self.rule, self.errors[i : i + 1], self.level[i : i + 1], self.grid)


class NativeResidualMap:
    """`ResidualMap` while decoding, of its weights as they are now."""

    def __init__(self, rule: ResidualMap, grid: PatchGrid) -> None:
        found = library()
        assert not isinstance(found, str), found
        self.native, self.rule, self.grid = found, rule, Grid(rule, grid)

    def open(self, frame: Tensor) -> Tensor:
        """See `ResidualMap.open`."""
        return torch.zeros(frame.shape)

    def begin(self, frame: Tensor, canvas: Tensor) -> NativeFrameResidual:
        """See `ResidualMap.begin`."""
        frame, call = frame.float().contiguous(), self.grid.call
        errors = torch.empty(len(frame), call.side**2, call.scales + 1)
        self.native.autogaze_errors(
            self.grid.address, len(frame), frame.data_ptr(), canvas.data_ptr(), errors.data_ptr()
        )
        level = torch.full(errors.shape[:2], NEVER, dtype=torch.uint8)
        return NativeFrameResidual(self.rule, errors, level, self.grid)

    def look(self, canvas: Tensor, frame: Tensor, ids: Tensor, chosen: Tensor) -> Tensor:
        """See `ResidualMap.look`; the canvas is changed in place."""
        frame, ids, chosen = frame.float().contiguous(), ids.contiguous(), chosen.contiguous()
        self.native.autogaze_look(
            self.grid.address,
            len(frame),
            frame.data_ptr(),
            ids.data_ptr(),
            chosen.data_ptr(),
            ids.shape[1],
            canvas.data_ptr(),
        )
        return canvas


def residual_map(rule: ResidualMap, grid: PatchGrid) -> ResidualMap | NativeResidualMap:
    """The native one if there is code for the model's patch size."""
    return NativeResidualMap(rule, grid) if rule.cell_px in PLACES_PX else rule
