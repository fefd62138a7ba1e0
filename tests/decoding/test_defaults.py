"""PyTorch's default dtype and default device may be anything: what is chosen does not change."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from autogaze.decoding.cpu.build import library
from tests.gaze_models import random_video, small_model, typical_loss

WAYS = ["reference"] + ([] if isinstance(library(), str) else ["cpu"])


@pytest.fixture
def defaults() -> Iterator[None]:
    """The defaults, put back after the test."""
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)
    torch.set_default_device(None)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("residual_map", [False, True])
@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, torch.float16, "meta"])
def test_defaults_of_pytorch_change_nothing(
    defaults: None, way: str, residual_map: bool, default: torch.dtype | str
) -> None:
    model, video = small_model(residual_map=residual_map), random_video(2, 4)
    asked = typical_loss(model, video, 0.4)
    calibration = ((asked - 1.0, asked - 1.0034), (asked + 1.0, asked + 0.9961))
    model = small_model(residual_map=residual_map, calibration=calibration)
    model.decoding = way
    requests = ((0.5, asked), (torch.tensor([0.3, 0.6]), None))
    expected = [model.generate(video, *request) for request in requests]
    stream = model.stream(0.5, asked, batch=2)
    expected.append(stream.step(video[:, 0]))
    if isinstance(default, str):
        torch.set_default_device(default)  # "meta": whatever is made without a device holds no numbers
    else:
        torch.set_default_dtype(default)
    found = [model.generate(video, *request) for request in requests for _ in range(2)][1::2]
    stream = model.stream(0.5, asked, batch=2)
    found.append(stream.step(video[:, 0]))
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.ids, theirs.ids) and torch.equal(ours.chosen, theirs.chosen)
        assert ours.task_loss is not None and theirs.task_loss is not None
        assert ours.task_loss.dtype == torch.float32
        torch.testing.assert_close(ours.task_loss, theirs.task_loss, equal_nan=True, atol=0, rtol=0)
