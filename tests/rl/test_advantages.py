"""Advantages: the recorded gradient of the published GRPO loss, a written-out sum, and group properties."""

from __future__ import annotations

import pytest
import torch

from autogaze.rl.advantages import group_advantages, token_advantages


def test_groups_sum_to_zero() -> None:
    advantages = group_advantages(torch.randn(5, 3, 4))
    torch.testing.assert_close(advantages.sum(0), torch.zeros(3, 4), atol=1e-6, rtol=0)


def test_one_rollout_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 per clip, got 1"):
        group_advantages(torch.zeros(1, 3))


def test_token_advantages_equal_the_written_out_sum() -> None:
    generator = torch.Generator().manual_seed(0)
    advantages = torch.randn(2, 3, generator=generator)
    chosen = torch.rand(2, 3, 4, generator=generator) < 0.6
    got = token_advantages(advantages, chosen, 0.8)
    for row in range(2):
        flat = chosen[row].flatten()
        for slot in range(12):
            wanted = 0.0
            for frame in range(slot // 4, 3):
                between = int(flat[slot + 1 : (frame + 1) * 4].sum())
                wanted += float(advantages[row, frame]) * 0.8**between
            wanted *= float(flat[slot])
            assert float(got[row].flatten()[slot]) == pytest.approx(wanted, abs=1e-6)


def test_long_clips_do_not_underflow_to_nan() -> None:
    chosen = torch.ones(1, 16, 265, dtype=torch.bool)
    assert torch.isfinite(token_advantages(torch.ones(1, 16), chosen, 0.5)).all()


def test_discount_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match="discount"):
        token_advantages(torch.zeros(1, 1), torch.ones(1, 1, 1, dtype=torch.bool), 1.5)
