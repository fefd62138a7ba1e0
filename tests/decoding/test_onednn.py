"""oneDNN's products and attention equal PyTorch's own; skipped where this build of PyTorch has none."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from autogaze.decoding import onednn
from tests.gaze_models import random_video, small_model

pytestmark = pytest.mark.skipif(not onednn.fits(torch.zeros(1)), reason="this PyTorch has no oneDNN operator")


def test_a_product_equals_linear() -> None:
    x, weight = torch.randn(2, 70, 48), torch.randn(96, 48)
    for held in (weight, weight.to_mkldnn()):
        torch.testing.assert_close(onednn.multiply(x, held), F.linear(x, weight), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("new", "total"), [(64, 512), (206, 700), (104, 600), (10, 600), (100, 300)])
def test_attention_equals_torchs(new: int, total: int) -> None:
    cache = torch.randn(2, 2, 3, 1000, 16)  # keys and values of two clips with three heads, not filled
    key, value, query = cache[0, :, :, :total], cache[1, :, :, :total], torch.randn(2, 3, new, 16)
    mask = torch.full((new, total), -torch.inf).triu(total - new + 1)
    torch.testing.assert_close(
        onednn.attend(query, key, value, mask),
        F.scaled_dot_product_attention(query, key, value, mask),
        atol=1e-5,
        rtol=1e-4,
    )


def test_only_float32_on_a_cpu_fits() -> None:
    assert not onednn.fits(torch.zeros(1, dtype=torch.bfloat16)) and not onednn.fits(torch.zeros(1, device="meta"))


def test_a_long_clip_gets_the_same_ids_with_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    # 144 visual tokens a frame, so that the last frames have more than 512 keys
    model, video = small_model(scales=(48, 96, 192)), random_video(1, 5, side=192)
    model.decoding = "plain"
    expected = model.generate(video, 0.1).ids
    model.decoding = "cached"
    assert torch.equal(model.generate(video, 0.1).ids, expected)
    monkeypatch.setattr(onednn, "fits", lambda weight: False)
    assert torch.equal(model.generate(video, 0.1).ids, expected)


def test_autocast_is_left_to_torchs_operators() -> None:
    """Of a stream that was opened outside of it, too."""
    model, video = small_model(scales=(48, 96, 192)), random_video(1, 5, side=192)
    model.decoding = "cached"
    stream = model.stream(0.1)
    with torch.autocast("cpu", torch.bfloat16):
        steps = [stream.step(video[:, t]).ids for t in range(5)]
        whole = model.generate(video, 0.1).ids
    assert torch.equal(torch.cat(steps, 1), whole)
