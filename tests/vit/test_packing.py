"""Packing and packed attention against plain loops."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from autogaze import Gaze, PatchGrid
from autogaze.vit import attention as rows
from autogaze.vit.attention import LONG_RUN, packed_attention, pooled_attention
from autogaze.vit.packing import Layout, PackedIds, longest_run

GRID = PatchGrid((16, 32), 8)


def _gaze(seed: int = 0, clips: int = 2, frames: int = 3) -> Gaze:
    """Slots in any order with holes between them, and an empty frame."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.rand(clips, frames, GRID.patches_per_frame, generator=generator).argsort(-1)[..., :7]
    chosen = torch.rand(ids.shape, generator=generator) < 0.6
    chosen[0, 1] = False
    return Gaze(ids, chosen, GRID)


def _loop(q: Tensor, k: Tensor, v: Tensor, gaze: Gaze, attention: str, prefix: int) -> Tensor:
    """Attention of packed rows, one row at a time."""
    frames = gaze.ids.shape[1]
    owner = []  # (clip, frame) of every row
    for clip, counts in enumerate(gaze.counts.tolist()):
        if attention == "joint":
            owner += [(clip, 0)] * (prefix + sum(counts))
        else:
            owner += [(clip, frame) for frame in range(frames) for _ in range(prefix + counts[frame])]
    rows = []
    for row, (clip, frame) in enumerate(owner):
        seen = [
            other
            for other, (c, f) in enumerate(owner)
            if c == clip and (f == frame or (attention == "block_causal" and f < frame))
        ]
        weights = (torch.einsum("hd,shd->hs", q[row], k[seen]) * q.shape[-1] ** -0.5).softmax(-1)
        rows.append(torch.einsum("hs,shd->hd", weights, v[seen]))
    return torch.stack(rows)


@pytest.mark.parametrize("attention", ["frame", "block_causal", "joint"])
@pytest.mark.parametrize("prefix", [0, 2])
def test_packed_attention_equals_a_loop_over_rows(attention: str, prefix: int) -> None:
    gaze = _gaze()
    layout = Layout.of(PackedIds.of(gaze), attention, tuple(gaze.ids.shape), prefix)
    units = 2 if attention == "joint" else 6
    q, k, v = torch.randn(3, int(gaze.chosen.sum()) + prefix * units, 2, 8).unbind(0)
    assert int(layout.runs[-1]) == len(q)
    assert torch.allclose(packed_attention(q, k, v, layout), _loop(q, k, v, gaze, attention, prefix), atol=1e-6)


def _whole_gaze(clips: int = 2, frames: int = 3, slots: int = 7) -> Gaze:
    ids = torch.rand(clips, frames, GRID.patches_per_frame).argsort(-1)[..., :slots].contiguous()
    return Gaze(ids, torch.ones_like(ids, dtype=torch.bool), GRID)


@pytest.mark.parametrize("attention", ["frame", "joint"])
@pytest.mark.parametrize("prefix", [0, 2])
def test_regular_runs_equal_runs_of_any_length_and_a_loop(
    attention: str, prefix: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gaze = _whole_gaze()
    layout = Layout.of(PackedIds.of_whole(gaze), attention, tuple(gaze.ids.shape), prefix)
    assert layout.regular and torch.equal(layout.runs.diff().unique(), torch.tensor([layout.longest_run]))
    # as a block has them: views of one tensor
    q, k, v = torch.randn(int(layout.runs[-1]), 3, 2, 8, requires_grad=True).unbind(1)
    expected = packed_attention(q, k, v, replace(layout, regular=False))
    monkeypatch.delattr(rows, "_masked")
    got = packed_attention(q, k, v, layout)
    assert got.shape == q.shape and torch.allclose(got, expected, atol=1e-6)
    assert torch.allclose(got, _loop(q, k, v, gaze, attention, prefix), atol=1e-6)
    grads = [torch.autograd.grad(out.square().sum(), (q, k, v)) for out in (got, expected)]
    assert all(torch.allclose(mine, other, atol=1e-5) for mine, other in zip(*grads, strict=True))
    scaled = packed_attention(q * 0.2 * 8**0.5, k, v, layout)
    assert torch.allclose(packed_attention(q, k, v, layout, 0.2), scaled, atol=1e-6)


def test_only_a_gaze_known_to_be_whole_has_regular_runs() -> None:
    def regular(packed: PackedIds, gaze: Gaze, attention: str = "joint") -> bool:
        return Layout.of(packed, attention, tuple(gaze.ids.shape), 1).regular

    whole, holes, none = _whole_gaze(), _gaze(), _whole_gaze(slots=0)
    assert regular(PackedIds.of(whole), whole) and regular(PackedIds.of(whole), whole, "frame")
    assert not regular(PackedIds.of(whole), whole, "block_causal")
    assert not regular(PackedIds.of(whole, whole.ids.numel()), whole)  # true, but nobody asked
    assert not regular(PackedIds.of(holes), holes) and not regular(PackedIds.of(none), none)
    one_missing = replace(whole, chosen=whole.chosen.index_put((torch.tensor(1),) * 3, torch.tensor(False)))
    assert not regular(PackedIds.of(one_missing), one_missing)


def test_a_whole_gaze_packs_as_any_other() -> None:
    gaze = _whole_gaze()
    whole = PackedIds.of_whole(gaze)
    for other in (PackedIds.of(gaze), PackedIds.of(gaze, gaze.ids.numel())):
        for name in ("ids", "clip", "frame", "offsets"):
            assert torch.equal(getattr(whole, name), getattr(other, name))
            assert getattr(whole, name).dtype == getattr(other, name).dtype
    assert whole.ids.data_ptr() != gaze.ids.data_ptr()


@pytest.mark.parametrize("capacity", [42, 30])
def test_a_capacity_packs_the_same_patches_and_adds_filler(capacity: int) -> None:
    gaze = _gaze()
    exact, filled = PackedIds.of(gaze), PackedIds.of(gaze, capacity)
    count = len(exact.ids)
    assert count < capacity == len(filled.ids)
    for name in ("ids", "clip", "frame"):
        assert torch.equal(getattr(filled, name)[:count], getattr(exact, name))
        assert not getattr(filled, name)[count:].any()
    assert torch.equal(filled.offsets, exact.offsets) and filled.offsets.dtype == torch.int32


def test_an_empty_gaze_packs_to_nothing() -> None:
    gaze = Gaze(torch.zeros(2, 3, 4, dtype=torch.long), torch.zeros(2, 3, 4, dtype=torch.bool), GRID)
    packed = PackedIds.of(gaze)
    layout = Layout.of(packed, "block_causal", (2, 3, 4), 0)
    q = torch.randn(0, 2, 8)
    assert len(packed.ids) == 0 and packed_attention(q, q, q, layout).shape == (0, 2, 8)
    assert not pooled_attention(torch.randn(6, 2, 8), q, q, packed.offsets, 4).any()


def test_rows_survive_a_join_and_a_split() -> None:
    gaze = _gaze()
    packed = PackedIds.of(gaze, capacity=42)
    layout = Layout.of(packed, "frame", tuple(gaze.ids.shape), 3)
    prefix, patches = torch.randn(3, 5), torch.randn(42, 5)
    got_prefix, got_patches = layout.split(layout.join(prefix, patches))
    assert torch.equal(got_prefix, prefix.expand(6, -1, -1)) and torch.equal(got_patches, patches)


def test_the_gradient_of_masked_attention_is_finite_with_padded_and_empty_runs() -> None:
    gaze = _gaze()
    layout = Layout.of(PackedIds.of(gaze), "block_causal", tuple(gaze.ids.shape), 0)
    q, k, v = (torch.randn(int(gaze.chosen.sum()), 2, 8, requires_grad=True) for _ in range(3))
    packed_attention(q, k, v, layout).square().sum().backward()
    assert all(x.grad.isfinite().all() for x in (q, k, v))


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["frame", "block_causal", "joint"])
@pytest.mark.parametrize("size", [64, 72])
def test_flash_equals_masked_attention_on_the_gpu(attention: str, size: int) -> None:
    gaze = _gaze(clips=5, frames=16).to("cuda")
    layout = Layout.of(PackedIds.of(gaze), attention, tuple(gaze.ids.shape), 1)
    rows = int(layout.runs[-1])
    q, k, v = (torch.randn(rows, 4, size, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    expected = packed_attention(q.float(), k.float(), v.float(), layout)
    assert (packed_attention(q, k, v, layout).float() - expected).abs().max() < 2e-2
    grads = []
    for dtype in (torch.bfloat16, torch.float32):
        inputs = [x.to(dtype, copy=True).requires_grad_() for x in (q, k, v)]
        out = packed_attention(*inputs, layout)
        assert (out.float() - expected).abs().max() < 2e-2
        out.float().square().sum().backward()
        grads.append([x.grad.float() for x in inputs])
    for flash, masked in zip(*grads, strict=True):
        assert F.cosine_similarity(flash.flatten(), masked.flatten(), dim=0) > 0.999


@pytest.mark.gpu
@pytest.mark.parametrize("size", [64, 72])
@pytest.mark.parametrize("frames", [85, 84, 8])  # a run of 596, 589 and 57 rows: the last is not a long one
def test_regular_runs_equal_masked_attention_on_the_gpu(
    size: int, frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gaze = _whole_gaze(clips=3, frames=frames).to("cuda")
    layout = Layout.of(PackedIds.of_whole(gaze), "joint", tuple(gaze.ids.shape), 1)
    q, k, v = torch.randn(len(layout.patch_rows) + 3, 3, 4, size, device="cuda", dtype=torch.bfloat16).unbind(1)
    expected = packed_attention(q.float(), k.float(), v.float(), replace(layout, regular=False))
    calls = []
    real = rows._regular
    monkeypatch.setattr(rows, "_regular", lambda *args: calls.append(1) or real(*args))
    assert (packed_attention(q, k, v, layout).float() - expected).abs().max() < 2e-2
    assert len(calls) == int(longest_run("joint", tuple(gaze.ids.shape), 1) >= LONG_RUN)
    grads = []
    for form in (layout, replace(layout, regular=False)):
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        packed_attention(*inputs, form).float().square().sum().backward()
        grads.append([x.grad.float() for x in inputs])
    for one, other in zip(*grads, strict=True):
        assert F.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.999


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["frame", "block_causal", "joint"])
def test_filler_never_reaches_a_gradient_on_the_gpu(attention: str) -> None:
    gaze = _gaze(clips=2, frames=3).to("cuda")
    grads = []
    for capacity in (None, 42):
        packed = PackedIds.of(gaze, capacity)
        layout = Layout.of(packed, attention, tuple(gaze.ids.shape), 0)
        torch.manual_seed(0)
        weight = torch.randn(16, 3 * 2 * 16, device="cuda", dtype=torch.bfloat16).requires_grad_()
        x = torch.randn(42, 16, device="cuda", dtype=torch.bfloat16)[: len(packed.ids)]
        poison = torch.full((1 << 20,), torch.nan, device="cuda")  # freed memory that the kernels may be given
        del poison
        q, k, v = (x @ weight).unflatten(-1, (3, 2, 16)).unbind(1)
        out = packed_attention(q, k, v, layout)
        pooled = pooled_attention(q[:6], k, v, packed.offsets, 7)
        count = int(packed.offsets[-1])
        (out[:count].float().square().sum() + pooled.float().square().sum()).backward()
        grads.append(weight.grad.float())
    assert grads[1].isfinite().all() and torch.allclose(*grads, atol=5e-2, rtol=5e-2)


@pytest.mark.gpu
def test_flash_pooling_equals_masked_pooling_on_the_gpu() -> None:
    offsets = torch.tensor([0, 3, 3, 10], dtype=torch.int32, device="cuda")
    q, k, v = (torch.randn(count, 4, 64, device="cuda", dtype=torch.bfloat16) for count in (3, 10, 10))
    flash = pooled_attention(q, k, v, offsets, 10).float()
    assert (flash - pooled_attention(q.float(), k.float(), v.float(), offsets, 10)).abs().max() < 2e-2
