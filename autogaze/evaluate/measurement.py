"""Measurement: what one method keeps of every clip at one gazing ratio."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from autogaze.core.gaze import Gaze
from autogaze.evaluate.clips import ClipSet
from autogaze.evaluate.methods import Method
from autogaze.evaluate.metrics import psnr, ssim
from autogaze.pretrain.reconstructor.network import Reconstructor
from autogaze.pretrain.reconstructor.paste import paste

EXACT = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)  # convolutions in float32, not TF32


@dataclass(frozen=True, eq=False)
class Scores:
    """One value a clip, (N,) float64 each."""

    spent: np.ndarray  # share of the clip's patches that was chosen
    loss: np.ndarray  # the reconstructor's training loss, mean over frames
    psnr: np.ndarray  # decibels, of the reconstruction
    ssim: np.ndarray  # of the reconstruction
    paste_psnr: np.ndarray  # decibels, of paste-and-upsample, without a network
    paste_ssim: np.ndarray


@dataclass(frozen=True, eq=False)
class Measurement:
    """Results of one method at one ratio."""

    method: str
    sort: str  # network, selector or oracle
    gazing_ratio: float  # asked; `scores.spent` is what was used
    scores: Scores


@dataclass(frozen=True, eq=False)
class Evaluator:
    """Scores gazes with a frozen reconstructor, batch by batch, in the precision of its weights and without TF32."""

    reconstructor: Reconstructor
    clips: ClipSet
    device: torch.device | str = "cpu"
    batch: int = 8  # clips at once
    seed: int = 0  # of methods that draw

    def __post_init__(self) -> None:
        self.reconstructor.to(self.device).eval().requires_grad_(False)

    @cached_property
    def peak(self) -> float:
        """Width of the range of preprocessed pixels."""
        return 255 * self.clips.preprocessor.rescale_factor / float(np.mean(self.clips.preprocessor.std))

    def measure(self, method: Method, gazing_ratio: float) -> Measurement:
        """Let a method choose in every clip, and score what it chose."""
        return self.judge(method, gazing_ratio, self.gazes(method, gazing_ratio))

    def gazes(self, method: Method, gazing_ratio: float) -> dict[int, Gaze]:
        """The choices of a method in every batch of clips, by the index of the batch's first clip."""
        return method.gazes(self.clips, self.batch, self.device, gazing_ratio, self.seed)

    def judge(self, method: Method, gazing_ratio: float, gazes: dict[int, Gaze]) -> Measurement:
        """Score what a method chose."""
        return Measurement(method.name, method.sort, gazing_ratio, self.score(lambda _, part: gazes[part.start]))

    @torch.no_grad()
    @EXACT
    def score(self, choose: Callable[[Tensor, slice], Gaze]) -> Scores:
        """Scores of the gazes that `choose` returns for each batch of clips."""
        parts = []
        for part, video in self.clips.batches(self.batch, self.device):
            gaze = choose(video, part)
            rebuilt = self.reconstructor(video, gaze)
            pasted = paste(video, gaze)
            columns = (
                gaze.ratio,
                rebuilt.loss.mean(-1),
                psnr(rebuilt.frames, video, self.peak),
                ssim(rebuilt.frames, video, self.peak),
                psnr(pasted, video, self.peak),
                ssim(pasted, video, self.peak),
            )
            parts.append(torch.stack([column.double() for column in columns]).cpu())
        return Scores(*torch.cat(parts, dim=1).numpy())

    @torch.no_grad()
    @EXACT
    def frame_losses(self, choose: Callable[[Tensor, slice], Gaze]) -> tuple[Tensor, Tensor]:
        """Loss and count of chosen patches of every frame, each (N, T) on the CPU."""
        losses, counts = [], []
        for part, video in self.clips.batches(self.batch, self.device):
            gaze = choose(video, part)
            losses.append(self.reconstructor(video, gaze).loss.float().cpu())
            counts.append(gaze.counts.cpu())
        return torch.cat(losses), torch.cat(counts)

    def dense_losses(self) -> Tensor:
        """(N, T) on the CPU: the loss of every frame when all patches are looked at."""
        return self.frame_losses(lambda video, _: self.everything(video))[0]

    def everything(self, video: Tensor) -> Gaze:
        """All patches of every frame."""
        grid = self.reconstructor.grid
        mask = torch.ones(*video.shape[:2], grid.patches_per_frame, dtype=torch.bool, device=video.device)
        return Gaze.from_patch_mask(mask, grid)
