"""The GRPO loss: the recorded case of the published implementation, clipping, and the KL estimate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from autogaze.rl.advantages import group_advantages, token_advantages
from autogaze.rl.grpo import kl_divergence, policy_loss


def test_grpo_loss_and_gradient_are_the_published_ones(shared: Path) -> None:
    parts = shared / "compat" / "parts"
    settings = json.loads((parts / "parts.json").read_text())["loss"]
    recorded = {k.removeprefix("loss."): v for k, v in load_file(parts / "parts.safetensors").items()}
    counts = recorded["num_gazing_each_frame"].tolist()
    ends = torch.tensor(counts).cumsum(0)
    group = settings["group_size"]

    centred = group_advantages(recorded["reward"].unflatten(0, (group, -1))).flatten(0, 1)
    advantages = torch.zeros(len(centred), len(counts))
    for column, length in enumerate(recorded["traj_len_each_reward"]):
        advantages[:, int((ends == length).nonzero())] = centred[:, column]
    chosen = ~recorded["if_padded_gazing"].unflatten(1, (len(counts), -1))
    log_probs = recorded["log_action_probs"].unflatten(1, (len(counts), -1)).clone().requires_grad_()
    loss = policy_loss(log_probs, token_advantages(advantages, chosen, settings["discount_factor"]), chosen).loss
    torch.testing.assert_close(loss, recorded["grpo"], atol=1e-4, rtol=0)
    loss.sum().backward()
    torch.testing.assert_close(log_probs.grad.flatten(1), recorded["grpo_grad"], atol=1e-4, rtol=0)


def test_a_better_rollout_becomes_likelier() -> None:
    logits = torch.zeros(2, requires_grad=True)
    log_probs = logits.log_softmax(0)[:, None]
    policy_loss(log_probs, torch.tensor([[1.0], [-1.0]]), torch.ones(2, 1, dtype=torch.bool)).loss.sum().backward()
    assert logits.grad[0] < 0 < logits.grad[1]


def test_clipping_stops_the_gradient_of_ids_that_moved_far_enough() -> None:
    log_probs = torch.tensor([[0.5, 0.05]], requires_grad=True)
    chosen = torch.ones(1, 2, dtype=torch.bool)
    result = policy_loss(log_probs, torch.ones(1, 2), chosen, sampled=torch.zeros(1, 2), clip=0.2)
    result.loss.sum().backward()
    assert log_probs.grad[0, 0] == 0 and log_probs.grad[0, 1] < 0
    assert float(result.clipped) == pytest.approx(0.5)


def test_kl_is_zero_at_the_reference_and_positive_elsewhere() -> None:
    here, chosen = torch.randn(2, 3), torch.ones(2, 3, dtype=torch.bool)
    assert float(kl_divergence(here, here, chosen).sum()) == 0.0
    assert bool((kl_divergence(here, here + torch.randn(2, 3), chosen) > 0).all())
