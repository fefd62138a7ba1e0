"""Positions: a ViT's own embedding, carried to every scale of a grid.

A ViT knows one grid, say 14 x 14. Scales of 2 x 2, 4 x 4 and 7 x 7 get its embedding interpolated to their sides by
the family's own rule, which at 14 x 14 is the embedding itself. Rotary positions are evaluated where the centre of a
coarse patch falls among the patches of the finest scale: the one patch of 1 x 1 over 14 x 14 sits at (6.5, 6.5).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from autogaze.core.grid import PatchGrid


def resize_table(
    table: Tensor, rows: int, columns: int, mode: str = "bicubic", antialias: bool = False, align_corners: bool = False
) -> Tensor:
    """Interpolate an embedding to another grid.

    Args:
        table: (rows, columns, D), the ViT's own.
        mode, antialias, align_corners: the family's rule, as in `torch.nn.functional.interpolate`.

    Returns:
        (rows * columns, D) in the dtype of `table`; `table` itself where the grid is its own.
    """
    if tuple(table.shape[:2]) == (rows, columns):
        return table.flatten(0, 1)
    resized = F.interpolate(
        table.permute(2, 0, 1)[None].float(),
        (rows, columns),
        mode=mode,
        antialias=antialias,
        align_corners=align_corners,
    )
    return resized[0].flatten(1).T.to(table.dtype)


def square(table: Tensor) -> Tensor:
    """(S * S, D) -> (S, S, D)."""
    side = round(len(table) ** 0.5)
    if side * side != len(table):
        raise ValueError(f"a position embedding of {len(table)} patches is not a square: its grid is unknown")
    return table.unflatten(0, (side, side))


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def fine_places(grid: PatchGrid, device: torch.device) -> Tensor:
    """(patches_per_frame, 2) float32: row and column of every patch's centre among the patches of the finest scale."""
    finest = torch.tensor(grid.sides[-1])
    places = []
    for rows, columns in grid.sides:
        centres = torch.cartesian_prod(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5)
        places.append(centres * finest / torch.tensor([rows, columns]) - 0.5)
    return torch.cat(places).to(device)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A small constant on a device, copied there once: a copy cannot be captured in a CUDA graph."""
    return torch.tensor(values, device=device)
