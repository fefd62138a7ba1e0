"""Streams equal whole clips, in constant memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from autogaze import AutoGaze, Gaze
from autogaze.decoding.stream import GazeStream
from tests.gaze_models import random_video, small_model, typical_loss


def streamed(model: AutoGaze, video: torch.Tensor, *arguments: Any) -> Gaze:
    stream = model.stream(*arguments, batch=len(video))
    return Gaze.join([stream.step(video[:, t]) for t in range(video.shape[1])])


@pytest.mark.parametrize("way", ["reference", "auto"])
@pytest.mark.parametrize("window", [16, 3])
@pytest.mark.parametrize("quantile", [None, 0.2])
def test_a_stream_equals_the_whole_clip(way: str, window: int, quantile: float | None) -> None:
    model, video = small_model(max_num_frames=window), random_video(2, 7)
    asked = None if quantile is None else typical_loss(model, video, quantile)
    model.decoding = way
    whole, step_by_step = model.generate(video, 0.6, asked), streamed(model, video, 0.6, asked)
    assert torch.equal(whole.chosen, step_by_step.chosen) and torch.equal(whole.ids, step_by_step.ids)
    torch.testing.assert_close(whole.task_loss, step_by_step.task_loss, atol=1e-4, rtol=1e-4, equal_nan=True)


def test_streams_side_by_side_may_ask_for_different_things() -> None:
    model, video = small_model(), random_video(2, 4)
    ratios = torch.tensor([0.1, 0.7])
    assert torch.equal(streamed(model, video, ratios).patch_mask(), model.generate(video, ratios).patch_mask())


def test_reset_opens_a_new_clip() -> None:
    model, video = small_model(), random_video(1, 4)
    stream = model.stream(0.5)
    first = [stream.step(video[:, t]).ids for t in range(4)]
    assert stream.frame == 4 and not torch.equal(stream.step(video[:, 0]).ids, first[0])
    stream.reset()
    assert stream.frame == 0 and all(torch.equal(stream.step(video[:, t]).ids, ids) for t, ids in enumerate(first))


def held_bytes(stream: GazeStream) -> int:
    """Bytes of every tensor that a stream holds on to, the model's own left out."""
    seen: dict[int, int] = {}
    own = {tensor.untyped_storage().data_ptr() for tensor in stream.model.state_dict().values()}

    def walk(value: Any, depth: int = 0) -> None:
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            seen[storage.data_ptr()] = 0 if storage.data_ptr() in own else storage.nbytes()
        elif isinstance(value, list | tuple):
            for item in value:
                walk(item, depth + 1)
        elif hasattr(value, "__dict__") and not isinstance(value, torch.nn.Module) and depth < 9:
            walk(list(vars(value).values()), depth + 1)

    walk(stream)
    return sum(seen.values())


@pytest.mark.parametrize("way", ["reference", "auto"])
def test_memory_does_not_grow(way: str) -> None:
    model, video = small_model(max_num_frames=2), random_video(1, 12)
    model.decoding = way
    stream = model.stream(0.3)
    sizes = []
    for t in range(12):
        stream.step(video[:, t])
        sizes.append(held_bytes(stream))
    assert max(sizes[3:]) == sizes[3] > 0


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (torch.zeros(2, 3, 64, 64), r"frame must be \(1, 3, H, W\) float"),
        (torch.zeros(1, 1, 3, 64, 64), "frame must be"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "got torch.uint8"),
    ],
)
def test_a_frame_of_another_form_is_refused(frame: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_model().stream(0.5).step(frame)


def test_a_stream_needs_a_clip_and_numbers() -> None:
    with pytest.raises(ValueError, match="at least one clip side by side, got batch 0"):
        small_model().stream(0.5, batch=0)
    with pytest.raises(ValueError, match="gazing_ratio must be in"):
        small_model().stream(1.5)
