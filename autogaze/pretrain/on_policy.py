"""Imitation on the model's own states: the model looks, and is told what would have been better to look at next.

A model that only imitates recorded gazes never sees what its own mistakes lead to. Here it gazes at each clip itself
up to a frame drawn at random; from there on the greedy choice on plain pixels (`autogaze.selectors.difference`) makes
the best of what the model has seen and missed, and that is what it learns from. Source: DAgger, arXiv:1011.0686.
"""

from __future__ import annotations

import torch
from torch import Tensor

from autogaze.gaze import Gaze
from autogaze.model import AutoGaze
from autogaze.pretrain.clips import Clip
from autogaze.pretrain.draws import draw_ratios, step_seed
from autogaze.pretrain.judge import Judge
from autogaze.pretrain.module import GazeModule, last_chosen
from autogaze.pretrain.ntp import ntp_loss, task_loss_prediction_loss
from autogaze.pretrain.recipes import PretrainRecipe
from autogaze.selectors.difference import DifferenceSelector


class OnPolicyModule(GazeModule):
    """Next-token prediction on corrections of the model's own gazes.

    Args:
        model: trained in place.
        judge: tells the loss that each frame's gaze left, for the model's loss head.
        recipe: `min_gazing_ratio` and `max_gazing_ratio` bound the budgets.
    """

    recipe: PretrainRecipe

    def __init__(self, model: AutoGaze, judge: Judge, recipe: PretrainRecipe) -> None:
        super().__init__(model, judge, recipe)
        self.teacher = DifferenceSelector(model.grid)

    def training_step(self, batch: Clip, batch_idx: int) -> Tensor:
        recipe = self.recipe
        seed = step_seed(recipe.seed, self.trainer.fit_loop.total_batch_idx, self.global_rank)
        gaze, corrected = self.correct(batch.video, torch.Generator().manual_seed(seed))
        scores = self.model.score(batch.video, gaze, as_decoded=True)
        ids = ntp_loss(scores.log_action_probs, corrected).mean()
        known = last_chosen(gaze.chosen)
        truth = self.judge.losses(batch.video, gaze)[..., None].expand(known.shape)
        task = task_loss_prediction_loss(scores.task_loss_prediction, truth, known).mean()
        size = len(batch.video)
        self.log("train/ntp_loss", ids, batch_size=size, prog_bar=True)
        self.log("train/task_loss_prediction_loss", task, batch_size=size)
        return ids + recipe.task_loss_weight * task

    @torch.no_grad()
    def correct(self, video: Tensor, generator: torch.Generator) -> tuple[Gaze, Tensor]:
        """The model's gaze up to a frame of each clip, and the teacher's from there on.

        Args:
            video: (B, T, 3, H, W) float.
            generator: draws budgets and frames; on the CPU.

        Returns:
            the gaze (B, T, K), and which of its slots are the teacher's, bool of the same shape.
        """
        recipe, (clips, frames) = self.recipe, video.shape[:2]
        ratios = draw_ratios(clips, recipe.min_gazing_ratio, recipe.max_gazing_ratio, generator)
        start = torch.randint(0, frames, (clips,), generator=generator).to(video.device)
        own = self.model.generate(video, gazing_ratio=ratios)
        with torch.autocast(video.device.type, enabled=False):  # pixels are compared in full precision
            gaze = self.teacher.choose(video.float(), own.counts, begun=own, start=start)
        frame = torch.arange(frames, device=video.device)
        return gaze, gaze.chosen & (frame >= start[:, None])[..., None]
