"""The residual map in C++ (`picture.h`): `ResidualMap` of frames that are decoded on a CPU.

In PyTorch a frame of 224 pixels costs some 7 ms on one thread, a third of what all else does; here a few tenths of one.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from autogaze.core.grid import PatchGrid
from autogaze.decoding.cpu.build import loaded
from autogaze.network.residual import (
    LEAST_ERROR,
    LEAST_GAIN,
    NEVER,
    STALE_CAP,
    STALE_FLOOR,
    FrameResidual,
    ResidualMap,
    patch_at,
)

PLACES_PX = (4, 8, 16, 32)  # of `with_pixels` in picture.h


class NativeResidualMap(ctypes.Structure):
    """`ResidualMap` while decoding, of its weights as they are now: `Grid` of picture.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("side", "cell_px", "scales", "patches")),
        *((name, ctypes.c_void_p) for name in ("blocks", "patch_at")),
        *((name, ctypes.c_double) for name in ("l1", "steps", "strength", "least_gain", "stale_floor", "stale_cap")),
        *((name, ctypes.c_double) for name in ("means", "contrast_floor", "contrast_power", "power", "least_error")),
        ("factors", ctypes.c_void_p),
    )

    def __init__(self, rule: ResidualMap, grid: PatchGrid) -> None:
        blocks = torch.tensor(rule.blocks, dtype=torch.int64, device="cpu")
        patches = patch_at(grid, rule.side, "cpu").int()
        l1, steps, *means = rule.weight.detach().float().clamp(min=0).tolist()
        response = [] if rule.response is None else rule.response.detach().double().tolist()
        floor, contrast, power = response[:3] or (1.0, 0.0, 1.0)
        factors = torch.tensor([*response[3:], 0.0], dtype=torch.float64, device="cpu")  # 0: after the finest
        super().__init__(
            side=rule.side,
            cell_px=rule.cell_px,
            scales=len(rule.blocks),
            patches=grid.patches_per_frame,
            blocks=blocks.data_ptr(),
            patch_at=patches.data_ptr(),
            l1=l1,
            steps=steps,
            strength=float(rule.strength.detach()),
            least_gain=LEAST_GAIN,
            stale_floor=STALE_FLOOR,
            stale_cap=STALE_CAP,
            means=means[0] if means else 0.0,
            contrast_floor=floor,
            contrast_power=contrast,
            power=power,
            least_error=LEAST_ERROR,
            factors=factors.data_ptr() if response else None,
        )
        self.native, self.rule, self.held = loaded(), rule, (blocks, patches, factors)  # the fields are addresses

    def open(self, frame: Tensor) -> Tensor:
        """See `ResidualMap.open`."""
        return torch.zeros(frame.shape, dtype=torch.float32, device="cpu")

    def begin(self, frame: Tensor, canvas: Tensor, visual: Tensor | None = None) -> FrameResidual:
        """See `ResidualMap.begin`."""
        frame = frame.float().contiguous()
        errors = torch.empty(len(frame), self.side**2, self.scales + 1, dtype=torch.float32, device="cpu")
        self.native.autogaze_errors(
            ctypes.addressof(self), len(frame), frame.data_ptr(), canvas.data_ptr(), errors.data_ptr()
        )
        level = torch.full(errors.shape[:2], NEVER, dtype=torch.uint8, device="cpu")
        return FrameResidual(self.rule, self.rule.gated(errors, visual), level)

    def look(self, canvas: Tensor, frame: Tensor, ids: Tensor, chosen: Tensor) -> Tensor:
        """See `ResidualMap.look`; the canvas is changed in place."""
        frame, ids, chosen = frame.float().contiguous(), ids.contiguous(), chosen.contiguous()
        self.native.autogaze_look(
            ctypes.addressof(self),
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
