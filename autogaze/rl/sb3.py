"""Stable-Baselines3 on `GazeEnv`: a policy around AutoGaze's encoder, and PPO. The only file that imports it.

SB3 has no autoregressive heads, so the policy takes one patch an action: every patch id has its own logit, read from
the visual tokens it covers; ids that are taken have probability zero, in sampling and in the update alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor, nn

from autogaze.model import AutoGaze
from autogaze.pretrain.recipes import RLRecipe
from autogaze.rl.env import GazeEnv

NEVER = -1e8  # logit of an action that is not there
EXTRA = 2  # taken and seen stand behind an id's features


class PatchFeatures(BaseFeaturesExtractor):
    """Features of every patch id: the mean of the visual tokens it covers, and whether it was taken or seen.

    Args:
        observation_space: of a `GazeEnv`.
        model: its encoder is used, and trained along.
    """

    def __init__(self, observation_space: spaces.Dict, model: AutoGaze) -> None:
        patches, width = model.grid.patches_per_frame, model.config.hidden_size
        super().__init__(observation_space, patches * (width + EXTRA))
        self.encoder, self.connector = model.vision_model, model.connector
        cover = model.grid.cover().flatten(1).float()
        self.register_buffer("cover", cover / cover.sum(1, keepdim=True).clamp(min=1))
        self.embedding = nn.Parameter(torch.randn(patches, width) * 0.02)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        visual, _ = self.encoder(observations["frames"])
        tokens = self.connector(visual)[:, -1]  # of the current frame
        features = self.cover @ tokens + self.embedding
        extra = torch.stack([observations["taken"], observations["seen"]], dim=-1)
        return torch.cat([features, extra], dim=-1).flatten(1)


class Unchanged(nn.Module):
    """SB3's place for a shared network; ours needs none."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.latent_dim_pi = self.latent_dim_vf = width

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return features, features

    def forward_actor(self, features: Tensor) -> Tensor:
        return features

    def forward_critic(self, features: Tensor) -> Tensor:
        return features


class PatchLogits(nn.Module):
    """One logit an id and one for stopping; taken ids get NEVER."""

    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.patches = patches
        self.score = nn.Sequential(nn.Linear(width + EXTRA, width), nn.GELU(), nn.Linear(width, 1))
        self.stop = nn.Sequential(nn.Linear(width + EXTRA, width), nn.GELU(), nn.Linear(width, 1))

    def forward(self, features: Tensor) -> Tensor:
        features = features.unflatten(-1, (self.patches, -1))
        logits = self.score(features).squeeze(-1).masked_fill(features[..., -EXTRA] > 0.5, NEVER)
        return torch.cat([logits, self.stop(features.mean(1))], dim=-1)


class PatchValue(nn.Module):
    """What the rest of the episode is worth."""

    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.patches = patches
        self.value = nn.Sequential(nn.Linear(width + EXTRA, width), nn.GELU(), nn.Linear(width, 1))

    def forward(self, features: Tensor) -> Tensor:
        return self.value(features.unflatten(-1, (self.patches, -1)).mean(1))


class GazePolicy(ActorCriticPolicy):
    """Actor and critic on AutoGaze's encoder, for any on-policy algorithm of SB3.

    Args:
        model: its encoder is used. The rest is SB3's.
    """

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space,
                 lr_schedule: Callable[[float], float], model: AutoGaze, **settings: Any) -> None:
        self.patches, self.width = model.grid.patches_per_frame, model.config.hidden_size
        super().__init__(observation_space, action_space, lr_schedule, features_extractor_class=PatchFeatures,
                         features_extractor_kwargs={"model": model}, ortho_init=False, **settings)

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = Unchanged(self.features_dim)  # type: ignore[assignment]

    def _build(self, lr_schedule: Callable[[float], float]) -> None:
        super()._build(lr_schedule)
        self.action_net = PatchLogits(self.patches, self.width)
        self.value_net = PatchValue(self.patches, self.width)  # type: ignore[assignment]
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)


def make_ppo(model: AutoGaze, make_env: Callable[[], GazeEnv], recipe: RLRecipe, environments: int = 4,
             device: str = "cpu", tensorboard: str | None = None) -> PPO:
    """PPO on environments made by `make_env`, with the recipe's knobs that PPO knows."""
    return PPO(GazePolicy, DummyVecEnv([make_env] * environments), policy_kwargs={"model": model}, seed=recipe.seed,
               learning_rate=recipe.learning_rate, clip_range=recipe.clip or 0.2, gamma=recipe.discount,
               max_grad_norm=recipe.gradient_clip, n_steps=128, batch_size=128, n_epochs=4, ent_coef=0.001,
               device=device, tensorboard_log=tensorboard)


def mean_return(algorithm: PPO, env: GazeEnv, greedy: bool = True) -> float:
    """Mean return of one episode on every clip of the environment."""
    returns = []
    for clip in range(len(env.clips)):
        observation, _ = env.reset(seed=clip, options={"clip": clip})
        total, ended = 0.0, False
        while not ended:
            action, _ = algorithm.predict(observation, deterministic=greedy)  # type: ignore[arg-type]
            observation, reward, ended, _, _ = env.step(int(action))
            total += reward
        returns.append(total)
    return float(np.mean(returns))
