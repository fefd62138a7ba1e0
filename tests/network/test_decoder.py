"""The gaze decoder's parts, against torch's own and against arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from autogaze.network.decoder import GazeDecoder, RopeConfig, rotate, rotation


def causal(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)


def make_decoder(**changes: object) -> GazeDecoder:
    arguments = dict(
        patches_per_frame=21, width=32, layers=2, heads=2, head_dim=16, hidden=64, group=4, eps=1e-5, rope=RopeConfig()
    )
    return GazeDecoder(**(arguments | changes))  # type: ignore[arg-type]


def test_unscaled_frequencies_are_powers_of_theta() -> None:
    torch.testing.assert_close(RopeConfig(theta=100.0, scaled=False).frequencies(4), torch.tensor([1.0, 0.1]))


def test_llama3_scaling_keeps_fast_angles_divides_slow_ones_and_blends_between() -> None:
    rope = RopeConfig()
    plain, scaled = (RopeConfig(scaled=flag).frequencies(64) for flag in (False, True))
    wavelength = 2 * math.pi / plain
    fast, slow = wavelength < 8192 / rope.high_freq_factor, wavelength > 8192 / rope.low_freq_factor
    torch.testing.assert_close(scaled[fast], plain[fast])
    torch.testing.assert_close(scaled[slow], plain[slow] / 8)
    between = (scaled / plain)[~fast & ~slow]
    assert len(between) and bool(((between > 1 / 8) & (between < 1)).all())


def test_rotated_products_depend_on_the_distance_only() -> None:
    query, key = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)
    frequencies = RopeConfig().frequencies(16)

    def product(a: int, b: int) -> float:
        turned = [rotate(x, *rotation(torch.tensor([[at]]), frequencies)) for x, at in ((query, a), (key, b))]
        return float((turned[0] * turned[1]).sum())

    assert product(7, 3) == pytest.approx(product(1007, 1003), abs=1e-3)
    assert product(7, 3) != pytest.approx(product(7, 6), abs=1e-3)


@torch.no_grad()
def test_tokens_fed_one_by_one_give_the_same_states() -> None:
    decoder, x = make_decoder(), torch.randn(2, 6, 32)
    held: dict[int, tuple[Tensor, Tensor]] = {}

    def remember(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if layer in held:
            key, value = torch.cat([held[layer][0], key], 2), torch.cat([held[layer][1], value], 2)
        held[layer] = (key, value)
        return F.scaled_dot_product_attention(query, key, value)

    one_by_one = [decoder.model(x[:, i : i + 1], torch.tensor([[i]]), remember) for i in range(6)]
    whole = decoder.model(x, torch.arange(6)[None], causal)
    torch.testing.assert_close(torch.cat(one_by_one, 1), whole, atol=1e-5, rtol=1e-5)


def test_the_heads_are_row_major_in_the_group() -> None:
    decoder, hidden = make_decoder(), torch.randn(3, 32)
    logits, loss = decoder.heads(hidden)
    assert logits.shape == (3, 4, 22) and loss.shape == (3, 4)
    torch.testing.assert_close(logits[:, 1], hidden @ decoder.lm_head.weight[22:44].T)


def test_angles_stay_float32_when_the_model_does_not() -> None:
    decoder = make_decoder().to(torch.bfloat16)
    assert decoder.lm_head.weight.dtype == torch.bfloat16 and decoder.model.frequencies.dtype == torch.float32
    torch.testing.assert_close(decoder.model.frequencies, RopeConfig().frequencies(16), atol=0, rtol=0)
    assert not any("frequencies" in name for name in decoder.state_dict())
