"""Rotary positions of packed patches, evaluated at the places of a grid's patches.

timm's four kinds: axial ("cat"), DINOv3, mixed (learned, its own angles in every block) and interleaved M-RoPE.
A table holds sines and cosines side by side, (patches_per_frame, 2 * head size), or for the mixed kind
(patches_per_frame, depth, heads, 2 * head size). Training-time jitter of coordinates is not applied.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from autogaze.core.grid import PatchGrid
from autogaze.vit.towers.positions import constant, fine_places


def rotary_table(rope: Any, grid: PatchGrid) -> Tensor:
    """The rotary table of a timm rope module on a grid; at the finest scale equal to the dense model's.

    Raises:
        ValueError: if the kind of rope is not known.
    """
    kind = type(rope).__name__
    if kind not in _KINDS:
        raise ValueError(f"GazedViT does not know rotary positions of {kind}; it knows {', '.join(_KINDS)}")
    return _KINDS[kind](rope, grid)


def rotate(x: Tensor, table: Tensor, half: bool) -> Tensor:
    """Rotate (..., heads, head size) by a table (..., 2 * head size) or (..., heads, 2 * head size)."""
    sine, cosine = (table if table.ndim == x.ndim else table.unsqueeze(-2)).chunk(2, dim=-1)
    if half:
        left, right = x.chunk(2, dim=-1)
        turned = torch.cat([-right, left], dim=-1)
    else:
        turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
    return x * cosine + turned * sine


def unrotated(table: Tensor, count: int) -> Tensor:
    """Rows of a table that leave `count` prefix tokens as they are."""
    rows = table.new_zeros(count, *table.shape[1:])
    rows[..., table.shape[-1] // 2 :] = 1.0
    return rows


def _axial(rope: Any, grid: PatchGrid) -> Tensor:
    bands = _bands(rope)
    places, shape = fine_places(grid, bands.device), constant(grid.sides[-1], bands.device)
    kind = getattr(rope, "grid_type", "pixel" if rope.in_pixels else "index")
    if kind == "pixel":
        places = places / (shape - 1).clamp(min=1) * 2 - 1
    elif kind == "centered":
        places = _centred(places, shape, rope)
    else:
        places = places + rope.grid_offset
    if rope.ref_feat_shape is not None:
        places = places / shape * constant(tuple(rope.ref_feat_shape), places.device)
    return _sines(_axes(places, rope)[:, :, None] * bands, getattr(rope, "rotate_half", False))


def _dinov3(rope: Any, grid: PatchGrid) -> Tensor:
    places, shape = fine_places(grid, rope.periods.device), constant(grid.sides[-1], rope.periods.device)
    coordinates = _axes(_centred(places, shape, rope), rope)
    return _sines(2 * math.pi * coordinates[:, :, None] / rope.periods, rope.rotate_half)


def _mixed(rope: Any, grid: PatchGrid) -> Tensor:
    first, second = _axes(fine_places(grid, rope.freqs.device), rope).unbind(-1)
    freqs = rope.freqs.float()  # (2, depth, heads, head size / 2)
    angles = first[:, None, None, None] * freqs[0] + second[:, None, None, None] * freqs[1]
    return _sines(angles[..., None, :], half=False)


def _mrope(rope: Any, grid: PatchGrid) -> Tensor:
    places = fine_places(grid, rope.inv_freq.device)
    places = torch.cat([torch.zeros_like(places[:, :1]), places], dim=-1)[:, rope.axis]  # time stays at 0
    return _sines((places * rope.inv_freq)[:, None], half=True)


def dinov3_table(inv_freq: Tensor, grid: PatchGrid) -> Tensor:
    """The rotary table of transformers' DINOv3 on a grid, from the frequencies (head size / 4,) of its rope."""
    shape = constant(grid.sides[-1], inv_freq.device)
    coordinates = (fine_places(grid, inv_freq.device) + 0.5) / shape * 2 - 1
    return _sines(2 * math.pi * coordinates[:, :, None] * inv_freq, half=True)


_KINDS = {
    "RotaryEmbeddingCat": _axial,
    "RotaryEmbeddingDinoV3": _dinov3,
    "RotaryEmbeddingMixed": _mixed,
    "RotaryEmbeddingMRope": _mrope,
}


def _bands(rope: Any) -> Tensor:
    """Frequencies of an axial rope; timm before 1.0.30 does not keep them where it keeps finished sines."""
    if rope.bands is not None:
        return rope.bands
    from timm.layers.pos_embed_sincos import freq_bands, pixel_freq_bands

    device = rope.pos_embed.device
    if rope.in_pixels:
        return pixel_freq_bands(rope.dim // 4, float(rope.max_res), linear_bands=rope.linear_bands, device=device)
    return freq_bands(rope.dim // 4, temperature=rope.temperature, step=1, device=device)


def _centred(places: Tensor, shape: Tensor, rope: Any) -> Tensor:
    """Patch centres in [-1, 1]."""
    size = {"separate": shape, "max": shape.max(), "min": shape.min()}[getattr(rope, "normalize_coords", "separate")]
    return (places + 0.5 + rope.grid_offset) / size * 2 - 1


def _axes(places: Tensor, rope: Any) -> Tensor:
    """(row, column), or (column, row) for a rope that counts x first."""
    return places.flip(-1) if getattr(rope, "grid_indexing", "ij") == "xy" else places


def _sines(angles: Tensor, half: bool) -> Tensor:
    """(..., axes, frequencies) angles -> (..., 2 * head size) sines and cosines in the layout that `rotate` takes."""
    angles = angles.flatten(-2)
    angles = torch.cat([angles, angles], dim=-1) if half else angles.repeat_interleave(2, dim=-1)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
