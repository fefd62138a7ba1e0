"""Imitation on the model's own states: the model looks, and is told what would have been better to look at.

A model that only imitates recorded gazes never sees what its own mistakes lead to. Here it gazes at each clip itself;
at every group of ids, or every id, plain pixels say what each patch would have been worth after what the model has
seen and missed (`autogaze.selectors.difference`), and that is what it learns from. The teacher also knows the frames
to come: what a look shows of a place that stays as it is counts for them too, and the model has to guess which places
those are. Source: DAgger, arXiv:1011.0686; that all patches are taught by their worth, not the best alone, is ours.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from autogaze.core.gaze import Gaze
from autogaze.decoding.scoring import score_all
from autogaze.model import AutoGaze
from autogaze.pretrain.judge import AnyJudge
from autogaze.pretrain.module import GazeModule, last_chosen
from autogaze.pretrain.ntp import per_mean_count, task_loss_prediction_loss
from autogaze.selectors.difference import DifferenceSelector
from autogaze.selectors.ranking import NEVER
from autogaze.training.data.clip import Clip
from autogaze.training.draws import draw_ratios, step_seed
from autogaze.training.recipes import PretrainRecipe

LEAST_GAIN = 1e-3  # below this nothing is to be gained, and all patches are as good as the best


class OnPolicyModule(GazeModule):
    """Next-token prediction on corrections of the model's own gazes.

    Args:
        model: trained in place.
        judge: tells the loss that each frame's gaze left, for the model's loss head.
        recipe: `min_gazing_ratio` and `max_gazing_ratio` bound the budgets, `softness` says how the worth of patches is
            taught.
    """

    recipe: PretrainRecipe

    def __init__(self, model: AutoGaze, judge: AnyJudge, recipe: PretrainRecipe) -> None:
        super().__init__(model, judge, recipe)
        self.teacher = DifferenceSelector(model.grid)
        # A model that scores by a residual map knows its picks at every slot, others only those of earlier groups.
        self.known_slots = 1 if model.residual_map is not None else model.gaze_decoder.group

    def training_step(self, batch: Clip, batch_idx: int) -> Tensor:
        recipe, video = self.recipe, batch.video
        seed = step_seed(recipe.seed, self.trainer.fit_loop.total_batch_idx, self.global_rank)
        gaze, gains = self.correct(video, torch.Generator().manual_seed(seed))
        logits, predicted = score_all(self.model, video, gaze, as_decoded=True)
        losses = imitation(logits[..., :-1], gains, gaze.chosen, recipe.softness)
        ids = per_mean_count(losses, gaze.chosen).mean()
        known = last_chosen(gaze.chosen)
        truth = self.judge.losses(video, gaze)[..., None].expand(known.shape)
        task = task_loss_prediction_loss(predicted, truth, known, recipe.relative_task_loss).mean()
        size = len(video)
        self.log("train/ntp_loss", ids, batch_size=size, prog_bar=True)
        self.log("train/task_loss_prediction_loss", task, batch_size=size)
        return ids + recipe.task_loss_weight * task

    @torch.no_grad()
    def correct(self, video: Tensor, generator: torch.Generator) -> tuple[Gaze, Tensor]:
        """The model's gaze, and what each patch would have been worth at its slots.

        Args:
            video: (B, T, 3, H, W) float.
            generator: draws budgets; on the CPU.

        Returns:
            the gaze (B, T, K), and (B, T, K, patches_per_frame) as `DifferenceSelector.gains` says.
        """
        recipe = self.recipe
        ratios = draw_ratios(len(video), recipe.min_gazing_ratio, recipe.max_gazing_ratio, generator)
        gaze = self.model.generate(video, gazing_ratio=ratios[:, None])
        with torch.autocast(video.device.type, enabled=False):  # pixels are compared in full precision
            return gaze, self.teacher.gains(video.float(), gaze, self.known_slots, recipe.foresight)


def imitation(logits: Tensor, gains: Tensor, chosen: Tensor, softness: float) -> Tensor:
    """Distance of a policy from the worth of patches: cross-entropy (...) in nats.

    Args:
        logits: (..., P) float, of the ids of patches.
        gains: (..., P) float, what each would be worth; `NEVER` where the policy cannot choose it.
        chosen: (...) bool, the slots that count; at least one of their gains is not `NEVER`.
        softness: the target is a softmax of gains over this share of the best gain; 0 teaches the best patch alone.
    """
    never = (gains == NEVER) & chosen[..., None]
    gains = gains.masked_fill(~chosen[..., None], 0.0)
    best = gains.amax(-1, keepdim=True).clamp(min=LEAST_GAIN)
    target = (gains / (best * softness)).softmax(-1) if softness else F.one_hot(gains.argmax(-1), gains.shape[-1])
    log_probs = logits.float().masked_fill(never, -torch.inf).log_softmax(-1)
    return -(target * log_probs.masked_fill(never, 0.0)).sum(-1)
