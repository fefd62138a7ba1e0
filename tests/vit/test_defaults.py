"""Defaults of torch, for numbers and devices, do not change what GazedViT computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from autogaze import Gaze, PatchGrid
from autogaze.vit import GazedViT, memory, patches

timm = pytest.importorskip("timm")

GRID = PatchGrid((16, 24, 64), 8)  # 24 does not divide 64: its pixels are mixed with weights


@contextmanager
def default(dtype: torch.dtype | None) -> Iterator[None]:
    """A default type of numbers, or the meta device."""
    before = torch.get_default_dtype()
    try:
        if dtype is None:
            with torch.device("meta"):
                yield
        else:
            torch.set_default_dtype(dtype)
            yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, None], ids=["float64", "bfloat16", "meta device"])
@pytest.mark.parametrize("attention", ["frame", "memory", "nearest"])
def test_defaults_of_torch_change_nothing(attention: str, dtype: torch.dtype | None) -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=64, patch_size=8).eval()
    random = torch.Generator("cpu").manual_seed(0)
    video = torch.rand(1, 3, 3, 80, 72, generator=random) * 2 - 1
    gaze = Gaze.from_patch_mask(torch.rand(1, 3, GRID.patches_per_frame, generator=random) < 0.4, GRID)
    gazed = GazedViT(model, attention)
    patches._taps.cache_clear()
    memory.cells_to_patches.cache_clear()
    with torch.inference_mode():
        with default(dtype):
            found = gazed(video, gaze)
            maps = found.dense()
        patches._taps.cache_clear()
        memory.cells_to_patches.cache_clear()
        expected = GazedViT(model, attention)(video, gaze)
        assert found.features.dtype == maps.dtype == torch.float32
        assert torch.allclose(found.features, expected.features, atol=1e-5)
        assert torch.allclose(maps, expected.dense(), atol=1e-5)
