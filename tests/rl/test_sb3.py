"""PPO on GazeEnv: never takes a taken patch, and learns where the only thing to see is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from autogaze.model import AutoGaze, AutoGazeConfig
from autogaze.pretrain.reconstructor.network import Reconstructor
from autogaze.rl.env import GazeEnv
from autogaze.rl.sb3 import make_ppo, mean_return
from autogaze.training.recipes import RLRecipe
from tests.rl.test_env import TINY, spotted_clip

CONFIG = AutoGazeConfig(
    residual_map=False,
    scales=(32, 64),
    hidden_size=24,
    num_hidden_layers=1,
    num_attention_heads=1,
    head_dim=16,
    intermediate_size=32,
    num_multi_token_pred=4,
)
MARGIN = 0.08  # reconstruction loss over an episode; the best there is to win is about 0.14


def make_env() -> GazeEnv:
    return GazeEnv(
        [spotted_clip(seed, frames=4) for seed in range(16)], Reconstructor(TINY), gazing_ratio=0.1, patch_price=0.002
    )


@pytest.fixture
def recipe() -> RLRecipe:
    return RLRecipe(algorithm="ppo", learning_rate=2e-3, discount=0.9)


def test_ppo_beats_its_start_by_the_margin(recipe: RLRecipe) -> None:
    torch.manual_seed(0)
    algorithm, env = make_ppo(AutoGaze(CONFIG), make_env, recipe), make_env()
    start = mean_return(algorithm, env)
    algorithm.learn(1024)
    assert mean_return(algorithm, env) >= start + MARGIN


def test_taken_patches_are_never_sampled(recipe: RLRecipe) -> None:
    algorithm, env = make_ppo(AutoGaze(CONFIG), make_env, recipe), make_env()
    observation, _ = env.reset(seed=0)
    observation["taken"][:-1] = 1
    actions = [int(algorithm.predict(observation)[0]) for _ in range(50)]
    assert set(actions) <= {env.stop - 1, env.stop}


def test_updates_see_the_same_probabilities_as_sampling(recipe: RLRecipe) -> None:
    algorithm, env = make_ppo(AutoGaze(CONFIG), make_env, recipe), make_env()
    observation, _ = env.reset(seed=0)
    observation["taken"][3:9] = 1
    tensors, _ = algorithm.policy.obs_to_tensor(observation)  # type: ignore[arg-type]
    with torch.no_grad():
        actions, _, sampled = algorithm.policy(tensors)
        _, updated, _ = algorithm.policy.evaluate_actions(tensors, actions)
    assert np.allclose(sampled, updated, atol=1e-6)
