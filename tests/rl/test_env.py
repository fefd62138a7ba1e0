"""GazeEnv: passes both environment checkers, pays exactly the fall of the loss, and masks what is taken."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env as gymnasium_check
from torch import Tensor

from autogaze.pretrain.reconstructor.network import Reconstructor, ReconstructorConfig
from autogaze.rl.env import GazeEnv

TINY = ReconstructorConfig(scales=(32, 64), width=32, depth=1, heads=2, mlp_ratio=2, loss="l1")


def spotted_clip(seed: int, frames: int = 3, place: tuple[int, int] | None = None) -> Tensor:
    """A grey clip with one textured 16 x 16 cell, which is all there is to see; its place is drawn unless given."""
    generator = torch.Generator().manual_seed(seed)
    clip = torch.zeros(frames, 3, 64, 64)
    drawn = torch.randint(0, 4, (2,), generator=generator).tolist()
    row, column = (16 * k for k in place or drawn)
    clip[:, :, row : row + 16, column : column + 16] = torch.rand(frames, 3, 16, 16, generator=generator) * 2 - 1
    return clip


@pytest.fixture(scope="module")
def env() -> GazeEnv:
    return GazeEnv([spotted_clip(seed) for seed in range(3)], Reconstructor(TINY), gazing_ratio=0.2, patch_price=0.01)


def test_passes_the_checkers_of_gymnasium_and_sb3(env: GazeEnv) -> None:
    from stable_baselines3.common.env_checker import check_env as sb3_check

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both warn of boxes that are no images
        gymnasium_check(env, skip_render_check=True)
        sb3_check(env)


def test_the_return_is_the_fall_of_the_loss_minus_the_price(env: GazeEnv) -> None:
    env.reset(seed=0, options={"clip": 1})
    before = env.loss
    total = sum(env.step(action)[1] for action in (0, 7))
    assert total == pytest.approx(before - env.loss - 2 * 0.01, abs=1e-6)


def test_stopping_goes_to_the_next_frame_and_ends_after_the_last(env: GazeEnv) -> None:
    env.reset(seed=0)
    ended = [env.step(env.stop)[2] for _ in range(3)]
    assert ended == [False, False, True]


def test_the_budget_ends_a_frame(env: GazeEnv) -> None:
    env.reset(seed=0)
    for action in range(env.budget):
        assert env.step(action)[4]["frame"] == (action + 1 == env.budget)


def test_taken_patches_are_masked_and_worth_nothing_again(env: GazeEnv) -> None:
    env.reset(seed=0)
    env.step(5)
    masks = env.action_masks()
    assert not masks[5] and masks.sum() == len(masks) - 1
    assert env.step(5)[1] == pytest.approx(-0.01)


def test_observations_remember_what_earlier_frames_saw(env: GazeEnv) -> None:
    env.reset(seed=0)
    env.step(5)
    observation = env.step(env.stop)[0]
    assert observation["seen"][5] == pytest.approx(0.5) and observation["taken"].sum() == 0


def test_the_same_seed_draws_the_same_clip(env: GazeEnv) -> None:
    first, again = env.reset(seed=3)[0], env.reset(seed=3)[0]
    assert np.array_equal(first["frames"], again["frames"])


def test_clips_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="one size"):
        GazeEnv([torch.zeros(2, 3, 64, 64), torch.zeros(2, 3, 32, 32)], Reconstructor(TINY))
    with pytest.raises(ValueError, match="at least one"):
        GazeEnv([], Reconstructor(TINY))
