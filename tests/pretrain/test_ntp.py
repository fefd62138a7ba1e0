"""NTP losses: the recorded cases of the published implementation, and what must not matter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from autogaze.pretrain.ntp import ntp_loss, per_mean_count, task_loss_prediction_loss


@pytest.fixture(scope="module")
def recorded(shared: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(shared / "compat" / "parts" / "parts.safetensors")
    return {name.removeprefix("loss."): value for name, value in tensors.items() if name.startswith("loss.")}


def test_ntp_loss_and_gradient_are_the_published_ones(recorded: dict[str, torch.Tensor]) -> None:
    log_probs = recorded["log_action_probs"].clone().requires_grad_()
    loss = ntp_loss(log_probs, ~recorded["if_padded_gazing"])
    torch.testing.assert_close(loss, recorded["ntp"], atol=1e-4, rtol=0)
    loss.sum().backward()
    torch.testing.assert_close(log_probs.grad, recorded["ntp_grad"], atol=1e-4, rtol=0)


def test_task_loss_prediction_loss_is_the_published_one(recorded: dict[str, torch.Tensor]) -> None:
    known = recorded["task_losses_mask"].bool() & ~recorded["if_padded_gazing"]
    loss = task_loss_prediction_loss(recorded["task_loss_prediction"], recorded["task_losses"], known)
    torch.testing.assert_close(loss, recorded["ntp_task_loss_prediction"], atol=1e-4, rtol=0)


def test_padding_cannot_change_the_loss() -> None:
    log_probs = torch.randn(2, 3, 4)
    chosen = torch.rand(2, 3, 4) < 0.5
    assert torch.equal(ntp_loss(log_probs, chosen), ntp_loss(log_probs.masked_fill(~chosen, float("nan")), chosen))


def test_an_empty_gaze_has_no_loss_and_a_finite_gradient() -> None:
    log_probs = torch.zeros(2, 3, 0, requires_grad=True)
    loss = ntp_loss(log_probs, torch.zeros(2, 3, 0, dtype=torch.bool)).sum()
    loss.backward()
    assert float(loss.detach()) == 0.0


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        per_mean_count(torch.zeros(2, 3), torch.zeros(2, 4, dtype=torch.bool))


def test_an_unknown_loss_leaves_value_and_gradient_alone() -> None:
    prediction = torch.tensor([[0.5, 0.5]], requires_grad=True)
    loss = task_loss_prediction_loss(prediction, torch.tensor([[0.25, float("nan")]]), torch.tensor([[True, False]]))
    loss.sum().backward()
    assert float(loss.detach()) == 0.0625 and prediction.grad.tolist() == [[0.5, 0.0]]


def test_relative_errors_are_shares_of_the_true_loss() -> None:
    prediction, truth = torch.tensor([[0.2, 0.3, 0.001]]), torch.tensor([[0.1, float("nan"), 0.0]])
    loss = task_loss_prediction_loss(prediction, truth, torch.tensor([[True, False, True]]), relative=True)
    torch.testing.assert_close(loss, torch.tensor([(1.0 + 0.01) / 2]))
