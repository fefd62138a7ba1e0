"""GRPO: sample a group of gazes of each clip, reward what reconstructs better, repeat.

As published (AutoGaze, arXiv:2603.12254 sec. 3.4) with one correction: rollouts are scored under the policy that
sampled them (its temperature, taken ids impossible). The published code scores without either, which biases the
gradient; `biased` does that too. Differences to plain GRPO are listed in `autogaze.rl.grpo`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from autogaze.model import AutoGaze
from autogaze.pretrain.judge import AnyJudge
from autogaze.pretrain.module import GazeModule, last_chosen
from autogaze.pretrain.ntp import LEAST_LOSS, task_loss_prediction_loss
from autogaze.rl.advantages import group_advantages, token_advantages
from autogaze.rl.clock import PhaseClock
from autogaze.rl.grpo import kl_divergence, policy_loss
from autogaze.rl.reward import frame_rewards
from autogaze.rl.rollouts import Rollouts
from autogaze.training.data.clip import Clip
from autogaze.training.draws import draw_ratios, step_seed
from autogaze.training.ranks import average_gradients
from autogaze.training.recipes import RLRecipe
from autogaze.training.schedule import linear

LOG_TIMES_EVERY = 10  # steps


@dataclass(frozen=True, eq=False)
class Terms:
    """Sums of one part of an update, over rollouts."""

    loss: Tensor  # () float, differentiable
    policy: Tensor
    task: Tensor
    kl: Tensor
    clipped: Tensor
    log_probs: Tensor  # (N, T, K) detached


class GRPOModule(GazeModule):
    """Improve a pretrained model by its own samples.

    Args:
        model: the policy, trained in place.
        judge: its loss is the negative reward.
        recipe: group size, discount, temperature and the rest.
    """

    recipe: RLRecipe

    def __init__(self, model: AutoGaze, judge: AnyJudge, recipe: RLRecipe) -> None:
        super().__init__(model, judge, recipe)
        self.automatic_optimization = False  # several updates a rollout, each in parts that fit the memory
        # In a list: the reference is no part of the module's parameters or checkpoints.
        self.reference = [copy.deepcopy(model).eval().requires_grad_(False)] if recipe.kl_weight else []

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.clock = PhaseClock(self.device)
        for reference in self.reference:
            reference.to(self.device)

    def training_step(self, batch: Clip, batch_idx: int) -> Tensor:
        recipe, temperature = self.recipe, self._temperature()
        self._log_times(len(batch.video))
        seed = step_seed(recipe.seed, self.trainer.fit_loop.total_batch_idx, self.global_rank)
        rollouts = self.rollout(batch.video, temperature, seed, batch.truth)
        sampled: list[Tensor] = []
        totals = torch.zeros(4, device=self.device)
        for update in range(recipe.updates_per_rollout):
            for i, part in enumerate(rollouts.split(recipe.score_rollouts)):
                terms = self._terms(part, temperature, sampled[i] if update else None)
                self.manual_backward(terms.loss / (len(rollouts) * recipe.accumulate))
                totals += torch.stack([terms.policy, terms.task, terms.kl, terms.clipped]).detach()
                if not update:
                    sampled.append(terms.log_probs)
            self._step(batch_idx)
        self.clock.mark("update")
        self._log(rollouts, totals / (len(rollouts) * recipe.updates_per_rollout), sampled)
        return totals[:2].sum()

    @torch.no_grad()
    def rollout(self, video: Tensor, temperature: float, seed: int, truth: Tensor | None = None) -> Rollouts:
        """Sample, judge and credit `group_size` gazes of each clip.

        Args:
            video: (B, T, 3, H, W) float.
            temperature: of sampling.
            seed: decides budgets and samples.
            truth: of the same shape, what the judge compares with; None: the video.
        """
        recipe = self.recipe
        ratios = draw_ratios(
            len(video), recipe.min_gazing_ratio, recipe.max_gazing_ratio, torch.Generator().manual_seed(seed)
        )
        repeated = video.repeat(recipe.group_size, 1, 1, 1, 1)
        gaze = self.model.generate(
            repeated,
            gazing_ratio=ratios.repeat(recipe.group_size)[:, None],
            task_loss_requirement=recipe.task_loss_requirement,
            temperature=temperature,
            generator=torch.Generator(video.device).manual_seed(seed),
        )
        self.clock.mark("rollout")
        loss = self.judge.losses(repeated, gaze, truth)
        paid = _relative(loss, recipe.group_size) if recipe.relative_reward else loss
        rewards = frame_rewards(paid, gaze.counts, gaze.grid.patches_per_frame, recipe.length_price)
        centred = group_advantages(rewards.unflatten(0, (recipe.group_size, -1))).flatten(0, 1)
        advantages = token_advantages(centred, gaze.chosen, recipe.discount)
        self.clock.mark("reward")
        return Rollouts(repeated, gaze, loss, advantages)

    def _temperature(self) -> float:
        return linear(self.recipe.temperature, self.recipe.final_temperature, self.run_progress)

    def _terms(self, part: Rollouts, temperature: float, sampled: Tensor | None) -> Terms:
        recipe, chosen = self.recipe, part.gaze.chosen
        under = None if recipe.biased else temperature
        scores = self.model.score(part.video, part.gaze, temperature=under)
        policy = policy_loss(scores.log_action_probs, part.advantages, chosen, sampled, recipe.clip)
        known = last_chosen(chosen)  # the judge saw each frame's whole gaze: its loss belongs to the last id
        truth = part.loss[..., None].expand(chosen.shape)
        task = task_loss_prediction_loss(scores.task_loss_prediction, truth, known, recipe.relative_task_loss).sum()
        loss, kl = policy.loss.sum() + recipe.task_loss_weight * task, torch.zeros_like(task)
        if self.reference:
            with torch.no_grad():
                reference = self.reference[0].score(part.video, part.gaze, temperature=under).log_action_probs
            kl = kl_divergence(scores.log_action_probs, reference, chosen).sum()
            loss = loss + recipe.kl_weight * kl
        return Terms(loss, policy.loss.sum(), task, kl, policy.clipped * len(part), scores.log_action_probs.detach())

    def _step(self, batch_idx: int) -> None:
        if (batch_idx + 1) % self.recipe.accumulate:
            return
        optimizer = self.optimizers()
        average_gradients(self.model.parameters())  # over devices, once for all parts
        if self.recipe.gradient_clip:
            self.clip_gradients(optimizer, self.recipe.gradient_clip, "norm")  # type: ignore[arg-type]
        optimizer.step()  # type: ignore[union-attr]
        optimizer.zero_grad()  # type: ignore[union-attr]

    def _log(self, rollouts: Rollouts, means: Tensor, sampled: list[Tensor]) -> None:
        size = len(rollouts) // self.recipe.group_size
        spread = rollouts.loss.unflatten(0, (self.recipe.group_size, -1)).std(0).mean()
        surprise = -sum(part.sum() for part in sampled) / rollouts.gaze.chosen.sum().clamp(min=1)
        self.log("train/reconstruction_loss", rollouts.loss.mean(), batch_size=size, prog_bar=True)
        self.log_dict(
            {
                "train/policy_loss": means[0],
                "train/task_loss_prediction_loss": means[1],
                "train/kl": means[2],
                "train/clipped": means[3],
                "train/group_deviation": spread,
                "train/entropy_nats": surprise,
                "train/gazing_ratio": rollouts.gaze.ratio.mean(),
            },
            batch_size=size,
        )

    def _log_times(self, size: int) -> None:
        """Log what the step before took: its marks have passed by now."""
        self.clock.mark("data")
        if self.trainer.fit_loop.total_batch_idx % LOG_TIMES_EVERY == 1:
            times = self.clock.read_ms()
            self.log_dict({f"time/{phase}_ms": value for phase, value in times.items()}, batch_size=size)
        else:
            self.clock.forget()


def _relative(loss: Tensor, group_size: int) -> Tensor:
    """Losses (G * B, T) as shares of the mean of their clip's: a clip with few patches does not decide alone."""
    grouped = loss.unflatten(0, (group_size, -1))
    return (grouped / grouped.mean((0, 2), keepdim=True).clamp(min=LEAST_LOSS)).flatten(0, 1)
