"""What is wrong with the picture of a frame, in C++ (`native/picture.h`): `PasteError` of frames decoded on a CPU.

In PyTorch a frame of 224 pixels costs some 7 ms on one thread, a third of what all else does; here a few tenths of one.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from autogaze.decoding.native_build import library
from autogaze.grid import PatchGrid
from autogaze.paste_error import HELD, LEAST_GAIN, MOST_HELD, NEVER, FrameError, PasteError, patch_at

PLACES_PX = (4, 8, 16, 32)  # of `with_pixels` in native/picture.h


class _Grid(ctypes.Structure):
    """`Grid` of native/picture.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("side", "place_px", "scales", "patches")),
        *((name, ctypes.c_void_p) for name in ("blocks", "patch_at")),
        *((name, ctypes.c_double) for name in ("l1", "steps", "strength", "least", "held", "most_held")),
    ]


class Grid:
    """What the library is told about a grid and the weights of `PasteError`, as they are now."""

    def __init__(self, rule: PasteError, grid: PatchGrid) -> None:
        self.blocks, self.patch_at = torch.tensor(rule.blocks), patch_at(grid, rule.side).int()
        l1, steps = rule.weight.detach().float().clamp(min=0).tolist()
        self.call = _Grid(
            side=rule.side,
            place_px=rule.place_px,
            scales=len(rule.blocks),
            patches=grid.patches_per_frame,
            blocks=self.blocks.data_ptr(),
            patch_at=self.patch_at.data_ptr(),
            l1=l1,
            steps=steps,
            strength=float(rule.strength.detach()),
            least=LEAST_GAIN,
            held=HELD,
            most_held=MOST_HELD,
        )
        self.address = ctypes.addressof(self.call)


@dataclass(eq=False)
class NativeFrameError(FrameError):
    """One that `NativeTrunk.choose` takes ids in."""

    grid: Grid

    def clip(self, i: int) -> NativeFrameError:
        return NativeFrameError(self.rule, self.errors[i : i + 1], self.level[i : i + 1], self.grid)


class NativePasteError:
    """`PasteError` while decoding, of its weights as they are now."""

    def __init__(self, rule: PasteError, grid: PatchGrid) -> None:
        found = library()
        assert not isinstance(found, str), found
        self.native, self.rule, self.grid = found, rule, Grid(rule, grid)

    def open(self, frame: Tensor) -> Tensor:
        """See `PasteError.open`."""
        return torch.zeros(frame.shape)

    def begin(self, frame: Tensor, canvas: Tensor) -> NativeFrameError:
        """See `PasteError.begin`."""
        frame, call = frame.float().contiguous(), self.grid.call
        errors = torch.empty(len(frame), call.side**2, call.scales + 1)
        self.native.autogaze_errors(
            self.grid.address, len(frame), frame.data_ptr(), canvas.data_ptr(), errors.data_ptr()
        )
        level = torch.full(errors.shape[:2], NEVER, dtype=torch.uint8)
        return NativeFrameError(self.rule, errors, level, self.grid)

    def look(self, canvas: Tensor, frame: Tensor, ids: Tensor, chosen: Tensor) -> Tensor:
        """See `PasteError.look`; the canvas is changed in place."""
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


def paste_error(rule: PasteError, grid: PatchGrid) -> PasteError | NativePasteError:
    """The native one if there is code for the model's patch size."""
    return NativePasteError(rule, grid) if rule.place_px in PLACES_PX else rule
