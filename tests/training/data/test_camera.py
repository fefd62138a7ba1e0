"""Effects of a camera on a clip: the same for the same recipe, in the truth what is seen, without noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from autogaze.training.data.camera import draw_camera, film
from autogaze.training.data.clip import ClipRecipe

PLAIN = ClipRecipe("video", "a.mp4", 4)


def clips(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 4, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 1.6 - 0.8


def test_nothing_is_drawn_at_probability_zero() -> None:
    random = np.random.default_rng(0)
    assert draw_camera(0.0, random) == {}
    assert random.random() == np.random.default_rng(0).random()


def test_clips_without_disturbance_pass_as_they_are() -> None:
    video = clips()
    seen, truth = film(video, [PLAIN, PLAIN])
    assert seen is video and truth is None


def test_noise_has_the_asked_deviation_and_a_clean_truth() -> None:
    video = clips()
    seen, truth = film(video, [replace(PLAIN, noise=10.0, camera_seed=3), PLAIN])
    assert truth is not None and torch.equal(truth, video)
    assert torch.equal(seen[1], video[1])
    deviation = float((seen[0] - video[0]).std() * 127.5)
    assert 9 < deviation < 11
    again, _ = film(video, [replace(PLAIN, noise=10.0, camera_seed=3), PLAIN])
    assert torch.equal(again, seen)


def test_flicker_and_shake_are_part_of_the_truth() -> None:
    video = clips(1)
    recipe = replace(PLAIN, flicker=0.1, shake=2, noise=5.0, camera_seed=1)
    seen, truth = film(video, [recipe])
    assert truth is not None and not torch.equal(truth, video)
    calm, none = film(video, [replace(recipe, noise=0.0)])
    assert none is None and torch.equal(calm, truth)


def test_each_disturbance_comes_about_as_often_as_asked() -> None:
    random = np.random.default_rng(5)
    drawn = [draw_camera(0.3, random) for _ in range(400)]
    for name in ("noise", "flicker", "shake"):
        assert 0.22 < np.mean([fields[name] > 0 for fields in drawn]) < 0.38
