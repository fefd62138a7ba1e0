"""Stable-Baselines3 on `GazeEnv`: a policy around AutoGaze's encoder, and PPO. The only file that imports it.

SB3 has no autoregressive heads, so the policy takes one patch an action: every patch id has its own logit, read from
the visual tokens it covers; ids that are taken have probability zero, in sampling and in the update alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor, nn

from autogaze.files import atomic_path, write_json
from autogaze.model import AutoGaze
from autogaze.pretrain.reconstructor.network import Reconstructor
from autogaze.rl.env import GazeEnv
from autogaze.training.recipes import RLRecipe

ENVIRONMENTS, ROLLOUT = 4, 128  # side by side, and steps of each between updates
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
    """Value of the rest of the episode."""

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

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Callable[[float], float],
        model: AutoGaze,
        **settings: Any,
    ) -> None:
        self.patches, self.width = model.grid.patches_per_frame, model.config.hidden_size
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            features_extractor_class=PatchFeatures,
            features_extractor_kwargs={"model": model},
            ortho_init=False,
            **settings,
        )

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = Unchanged(self.features_dim)  # type: ignore[assignment]

    def _build(self, lr_schedule: Callable[[float], float]) -> None:
        super()._build(lr_schedule)
        self.action_net = PatchLogits(self.patches, self.width)
        self.value_net = PatchValue(self.patches, self.width)  # type: ignore[assignment]
        settings = {"lr": lr_schedule(1), **self.optimizer_kwargs}
        self.optimizer = self.optimizer_class(self.parameters(), **settings)


def make_ppo(model: AutoGaze, make_env: Callable[[], GazeEnv], recipe: RLRecipe, tensorboard: str | None = None) -> PPO:
    """PPO on environments made by `make_env`, with the recipe's knobs that PPO knows."""
    games = DummyVecEnv([lambda: Monitor(make_env())] * ENVIRONMENTS)  # Monitor: returns in TensorBoard
    return PPO(
        GazePolicy,
        games,
        policy_kwargs={"model": model},
        seed=recipe.seed,
        learning_rate=recipe.learning_rate,
        clip_range=recipe.clip or 0.2,
        gamma=recipe.discount,
        max_grad_norm=recipe.gradient_clip,
        n_steps=ROLLOUT,
        batch_size=ROLLOUT,
        n_epochs=4,
        ent_coef=0.001,
        device=model.device,
        tensorboard_log=tensorboard,
    )


@dataclass(frozen=True)
class PPOResult:
    """Result of PPO on held-out clips: mean return of an episode, greedy."""

    steps: int  # of the environments
    minutes: float
    start_return: float
    final_return: float


class Clock(BaseCallback):
    """Ends PPO after some minutes."""

    def __init__(self, max_minutes: float | None) -> None:
        super().__init__()
        self.begun, self.max_minutes = time.monotonic(), max_minutes

    @property
    def minutes(self) -> float:
        return (time.monotonic() - self.begun) / 60

    def _on_step(self) -> bool:
        return self.max_minutes is None or self.minutes < self.max_minutes


def train_ppo(
    model: AutoGaze,
    reconstructor: Reconstructor,
    clips: Sequence[Tensor],
    held_out: Sequence[Tensor],
    recipe: RLRecipe,
    folder: Path,
) -> PPOResult:
    """PPO on clips; leaves `ppo.zip` (SB3's form), TensorBoard logs and `ppo.json` in a folder.

    Args:
        model: its encoder starts the policy.
        reconstructor: pays the reward.
        clips, held_out: (T, 3, H, W) float clips to learn on and to measure with.
        recipe: `max_steps` counts iterations (rollout of all environments and update); `max_gazing_ratio` is the
            budget and `length_price` the price of looking at everything.
        folder: of the stage.
    """
    price = recipe.length_price / reconstructor.grid.patches_per_frame

    def make(clips: Sequence[Tensor]) -> GazeEnv:
        return GazeEnv(clips, reconstructor, recipe.max_gazing_ratio, price, model.config.temporal_kernel - 1)

    algorithm = make_ppo(model, lambda: make(clips), recipe, tensorboard=str(folder / "tensorboard"))
    exam, clock = make(held_out), Clock(recipe.max_minutes)
    start = mean_return(algorithm, exam)
    algorithm.learn(recipe.max_steps * ROLLOUT * ENVIRONMENTS, callback=clock)
    with atomic_path(folder / "ppo.zip") as temporary:
        algorithm.save(temporary)
    result = PPOResult(algorithm.num_timesteps, round(clock.minutes, 3), start, mean_return(algorithm, exam))
    write_json(folder / "ppo.json", asdict(result))
    return result


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
