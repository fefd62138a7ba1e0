"""The residual map: how far a frame is from the picture that a gaze gives of it, place by place, from pixels alone.

The decoder's heads read one state a group, in which the places of a frame must share 192 numbers: it learns soon
whether to look coarsely or finely, and very slowly exactly where, or how much is left to be seen. Pixels say both. A
canvas holds the last known pixels of every place, as `autogaze.selectors.canvas` does, but grey: three colours tell the
loss hardly better than their mean (docs/log.md), at three times the work. A place's error is how far the canvas is from
the frame, in absolute values and in steps between neighbours, with the weights that tell the judge's loss best. From
that follow:

- *scores* of patches, added to what every head says: the logarithm of the error that a look would take away, over and
  above the ids chosen before in the frame;
- *the predicted loss* before every id: the mean error of the frame's places. It replaces the published loss head.
  The judge believes what a place showed some frames ago less than what it shows now, the less the finer it is; so a
  place that is only held counts with no less than a share of what is wrong after a look one scale above the finest.
  Where hardly anything has changed the judge sees that too: it counts with at most four times what is wrong.

A *perceptual* map measures differences as the features of a pretrained ViT see them: these hardly care how strong a
contrast is, but whether it is there. The weighted sum of three statistics of a cell (absolute values, steps, and means
of blocks of 4 pixels, in which the noise of single pixels is small) is divided by a power of the cell's own contrast,
raised to a power, and multiplied by a factor of the level. The numbers were searched for with DINOv2 as the judge
(docs/log.md). What a difference means depends on what it is in: a *gate* reads the visual token of each cell and
multiplies its errors, each level's by its own factor. It is 1 in a new map and is trained; `measure_plainly` leaves
nothing of a perceptual map but its gate.

A sensor's noise changes every pixel of every frame, and hardly anything that a ViT sees; so a map may compare frames
that were smoothed a little before (`residual_blur_px` of the config, done where frames lose their colours).

A look at a coarse scale is taken to leave the means of blocks of 2, 4 or 8 pixels: what the patch resolves, rounded to
a power of two so that blocks fill places. Within a frame the finest look at a place counts, and a later frame's look
replaces whatever was there.

Not in arXiv:2603.12254; published checkpoints have none of it and decode as they did.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autogaze.core.grid import PatchGrid
from autogaze.network.constants import Constants

NEVER = 0  # level of a place that nobody has looked at; scale k of the grid is level k + 1
LEAST_GAIN = 1e-5  # a patch that takes away less of a frame's loss than this scores as if it took away this much
STALE_FLOOR = 0.4  # that share; 0.35 to 0.5 tell the losses of validation clips alike (docs/log.md)
STALE_CAP = 4.0  # times what is wrong
L1, STEPS, STRENGTH = 1.25, 0.25, 8.0  # of new models; the first two tell the loss of validation clips
MEANS_PX = 4  # side of the blocks whose means a perceptual map compares
PERCEPTUAL_WEIGHT = (1.0, 0.112, 0.16)  # of absolute values, steps and means of new perceptual maps
CONTRAST_FLOOR, CONTRAST_POWER, POWER = 0.126, 0.256, 1.51  # and how they respond to contrast and to a difference
LEVEL_FACTORS = (1.0, 1.611, 1.102, 0.867)  # of what is known, and after a look at each scale but the finest
LEAST_ERROR = 1e-9  # keeps the power of no difference at all finite


class ResidualMap(nn.Module):
    """Errors of places, and what looks would take away.

    Args:
        grid: a square grid.
        side: places in a row of a frame.
        cell_px: side of a place in pixels, a power of two.
        perceptual: measure differences as features see them.
        width: channels of a visual token, which the gate of a perceptual map reads.
    """

    def __init__(self, grid: PatchGrid, side: int, cell_px: int, perceptual: bool = False, width: int = 192) -> None:
        super().__init__()
        if cell_px & (cell_px - 1):
            raise ValueError(f"residual_map needs patches whose side is a power of two, got patch_size {cell_px}")
        self.side, self.cell_px = side, cell_px
        finest = grid.scales[-1]
        self.blocks = tuple(min(cell_px, 1 << round(math.log2(finest / scale))) for scale in grid.scales)
        # Of absolute differences and of steps, not negative; fitted (`autogaze.stop_rule.loss_head`), never trained:
        # two numbers that squared errors of hard clips would pull about.
        self.weight = nn.Parameter(torch.tensor(PERCEPTUAL_WEIGHT if perceptual else (L1, STEPS)), requires_grad=False)
        # of a perceptual map: contrast floor, contrast power, power, and a factor for each level but the finest
        self.response = nn.Parameter(_response(len(self.blocks)), requires_grad=False) if perceptual else None
        self.gate = nn.Linear(width, len(self.blocks)) if perceptual else None  # of every level but the finest
        self.strength = nn.Parameter(torch.tensor(STRENGTH))  # of the scores
        self.counts = grid.patches_per_scale
        cover = torch.zeros(grid.patches_per_frame, side**2, dtype=torch.uint8, device="cpu")
        for k, patches in enumerate(patch_at(grid, side, "cpu")):
            cover[patches, torch.arange(side**2, device="cpu")] = k + 1
        self._constants = Constants(cover=cover, share=(cover > 0).float().t() / side**2)

    def measure_plainly(self) -> None:
        """Let a new perceptual map measure differences as other maps do; its gate can be trained all the same."""
        assert self.response is not None
        self.weight.data.copy_(torch.tensor((L1, STEPS, 0.0)))
        self.response.data.copy_(torch.tensor((CONTRAST_FLOOR, 0.0, 1.0, *(1.0 for _ in self.blocks))))

    @property
    def cover(self) -> Tensor:
        """(P, N) uint8: the level of each patch at the cells in it, else 0."""
        return self._constants.on(self.strength.device)["cover"]

    @property
    def share(self) -> Tensor:
        """(N, P) float32: the share of a frame that a cell of each patch is, 0 outside of it."""
        return self._constants.on(self.strength.device)["share"]

    def open(self, frame: Tensor) -> Tensor:
        """The canvas (B, 1, H, W) of clips that begin with a frame: mid-grey, nothing is known."""
        return torch.zeros_like(frame)

    def begin(self, frame: Tensor, canvas: Tensor, visual: Tensor | None = None) -> FrameResidual:
        """The residual map of frames (B, 1, H, W), whose visual tokens are (B, N, width), before anything is chosen in
        them; without the tokens as if the gate were 1."""
        errors = self.errors(frame, canvas, visual)
        return FrameResidual(self, errors, torch.full_like(errors[..., 0], NEVER, dtype=torch.uint8))

    def look(self, canvas: Tensor, frame: Tensor, ids: Tensor, chosen: Tensor) -> Tensor:
        """The canvas after a look at frames (B, 1, H, W): ids and chosen (B, K)."""
        level = self.levels(ids, chosen).amax(-2) if ids.shape[-1] else None
        if level is None:
            return canvas
        level = level.unflatten(-1, (1, self.side, self.side))
        level = level.repeat_interleave(self.cell_px, -1).repeat_interleave(self.cell_px, -2)  # (B, 1, H, W)
        for k, block in enumerate(self.blocks):
            canvas = torch.where(level == k + 1, blurred(frame, block), canvas)
        return canvas

    def along(self, frames: Tensor, ids: Tensor, chosen: Tensor, visual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scores and losses along gazes (B, T, K) of clips (B, T, 1, H, W) with visual tokens (B, T, N, width).

        Returns:
            scores (B, T, K, P) float32 at each slot, and the losses (B, T, K) float32 predicted after each slot.
        """
        levels = self.levels(ids, chosen).cummax(dim=2).values
        errors = self._weighed(self.features_along(frames, ids, chosen), visual)  # (B, T, N, scales + 1)
        before = F.pad(levels, (0, 0, 1, 0))[:, :, :-1]
        wide = errors[:, :, None].expand(*levels.shape, -1)
        return self.scores(wide, before), predicted_loss(wide, levels)

    def features_along(self, frames: Tensor, ids: Tensor, chosen: Tensor) -> Tensor:
        """`features` (B, T, N, scales + 1, 2) of all frames of clips whose gazes (B, T, K) are known."""
        canvas, found = self.open(frames[:, 0]), []
        for t in range(frames.shape[1]):
            found.append(self.features(frames[:, t], canvas))
            canvas = self.look(canvas, frames[:, t], ids[:, t], chosen[:, t])
        return torch.stack(found, dim=1)

    def errors(self, frame: Tensor, canvas: Tensor, visual: Tensor | None = None) -> Tensor:
        """Errors of each place as the canvas is, and after a look at each scale: (B, N, scales + 1)."""
        return self._weighed(self.features(frame, canvas), visual)

    def gated(self, errors: Tensor, visual: Tensor | None) -> Tensor:
        """Errors (..., N, scales + 1) times the gate of cells whose visual tokens are (..., N, width)."""
        if self.gate is None or visual is None:
            return errors
        with torch.autocast(errors.device.type, enabled=False):
            bias = cast(Tensor, self.gate.bias)
            factors = F.linear(visual.float(), self.gate.weight.float(), bias.float()).exp()
        return errors * F.pad(factors, (0, 1))  # nothing is wrong after a look at the finest scale

    def _weighed(self, features: Tensor, visual: Tensor | None) -> Tensor:
        """Errors (..., scales + 1) float32 of their features (..., scales + 1, n), under autocast too."""
        weight = self.weight.float().clamp(min=0)
        if self.response is None:
            return (features * weight).sum(-1)
        floor, contrast, power, *_ = self.response.float().unbind()
        difference = (features[..., :-1] * weight).sum(-1) / (features[..., -1] + floor).pow(contrast)
        factors = F.pad(self.response[3:].float(), (0, 1))
        return self.gated((difference + LEAST_ERROR).pow(power) * factors, visual)

    def features(self, frame: Tensor, canvas: Tensor) -> Tensor:
        """Terms of `errors`, (B, N, scales + 1, n): of the difference in each cell the mean absolute value, and the
        mean absolute step to the next pixel in a row, plus that in a column, within the cell. A perceptual map
        adds the mean absolute value of the means of blocks, and the standard deviation of the frame's own pixels."""
        with torch.autocast(frame.device.type, enabled=False):
            frame = frame.float()
            pictures = [canvas.float(), *(blurred(frame, block) for block in self.blocks)]
            found = []
            for picture in pictures:
                d = (frame - picture).unflatten(-1, (self.side, -1)).unflatten(-3, (self.side, -1))
                steps = d.diff(dim=3).abs().mean((1, 3, 5)) + d.diff(dim=5).abs().mean((1, 3, 5))
                statistics = [d.abs().mean((1, 3, 5)), steps]
                if self.response is not None:
                    blocks = d.unflatten(5, (-1, MEANS_PX)).unflatten(3, (-1, MEANS_PX)).mean((4, 7))
                    statistics += [blocks.abs().mean((1, 3, 5)), self._contrast(frame)]
                found.append(torch.stack(statistics, -1).flatten(1, 2))  # (B, N, n)
            return torch.stack(found, dim=2)

    def _contrast(self, frame: Tensor) -> Tensor:
        """(B, side, side): the standard deviation of the pixels of each cell."""
        cells = frame.unflatten(-1, (self.side, -1)).unflatten(-3, (self.side, -1))
        mean = cells.mean((1, 3, 5))
        return (cells.square().mean((1, 3, 5)) - mean.square()).clamp(min=0).sqrt()

    def levels(self, ids: Tensor, chosen: Tensor) -> Tensor:
        """(..., K, N) uint8: the level at which each id looks at each place, `NEVER` where it does not; k + 1 is a
        look at scale k."""
        return self.cover[ids] * chosen[..., None]

    def gains(self, errors: Tensor, level: Tensor) -> Tensor:
        """Gains: by how much each patch would lower the mean error of the frame's places, (..., P) float32.

        Args:
            errors: (..., N, scales + 1), of `errors`.
            level: (..., N) uint8, of the finest look at each place in this frame; coarser ones change nothing there.
        """
        now = residual_at_level(errors, level)
        taken = [
            (now - errors[..., k + 1]).masked_fill(level > k, 0.0) @ share.to(errors.dtype)
            for k, share in enumerate(self.share.split(self.counts, dim=1))
        ]
        return torch.cat(taken, dim=-1)

    def scores(self, errors: Tensor, level: Tensor) -> Tensor:
        """Scores that are added to the logits of patches: (..., P) float32. Arguments as of `gains`."""
        with torch.autocast(errors.device.type, enabled=False):
            return self.strength.float() * (self.gains(errors, level).clamp(min=0) + LEAST_GAIN).log()


@dataclass(eq=False)
class FrameResidual:
    """The residual map of frames while their ids are chosen, one after the other."""

    rule: ResidualMap
    errors: Tensor  # (B, N, scales + 1) float32
    level: Tensor  # (B, N) uint8, of the finest look at each place in this frame

    def clip(self, i: int) -> FrameResidual:
        """Of one clip, by itself."""
        return FrameResidual(self.rule, self.errors[i : i + 1], self.level[i : i + 1])

    def predicted_loss(self) -> Tensor:
        """The predicted loss (B,) float32 of what is chosen so far."""
        return predicted_loss(self.errors, self.level)

    def scores(self) -> Tensor:
        """(B, P) float32, added to the logits of the next id."""
        return self.rule.scores(self.errors, self.level)

    def take(self, ids: Tensor) -> None:
        """Choose one more id (B,) in each frame."""
        self.level = torch.maximum(self.level, self.rule.cover[ids])


def residual_at_level(errors: Tensor, level: Tensor) -> Tensor:
    """(..., N): of errors (..., N, scales + 1) those of each place's level (..., N)."""
    return errors.gather(-1, level[..., None].long()).squeeze(-1)


def predicted_loss(errors: Tensor, level: Tensor) -> Tensor:
    """The predicted loss (...): of errors (..., N, scales + 1) the mean of those of each place's level (..., N)."""
    now = residual_at_level(errors, level)
    held = now.maximum((STALE_FLOOR * errors[..., -2]).minimum(STALE_CAP * now))
    return torch.where(level == NEVER, held, now).mean(-1)


def _response(scales: int) -> Tensor:
    """A new `ResidualMap.response`; grids with other than four scales have no factors of their own yet."""
    factors = LEVEL_FACTORS if scales == len(LEVEL_FACTORS) else (1.0,) * scales
    return torch.tensor([CONTRAST_FLOOR, CONTRAST_POWER, POWER, *factors])


def smoothing(side: int, sigma: float) -> Tensor:
    """(side, side) float32 on the CPU: a Gaussian over a line of pixels, sigma in pixels; its ends are repeated."""
    lines = torch.eye(side, device="cpu")
    reach = max(1, math.ceil(3 * sigma))
    taps = torch.arange(-reach, reach + 1, dtype=torch.float32, device="cpu").div(sigma).square().mul(-0.5).exp()
    wide = F.pad(lines[:, None], (reach, reach), mode="replicate")
    return F.conv1d(wide, (taps / taps.sum()).view(1, 1, -1))[:, 0].t().contiguous()


def blurred(frame: Tensor, block: int) -> Tensor:
    """Frames (..., H, W) as means of blocks of so many pixels."""
    if block == 1:
        return frame
    parts = frame.unflatten(-1, (-1, block)).unflatten(-3, (-1, block))
    return parts.mean((-3, -1), keepdim=True).expand_as(parts).flatten(-2).flatten(-3, -2)


def patch_at(grid: PatchGrid, side: int, device: torch.device | str | None = None) -> Tensor:
    """(scales, side * side) int64: the patch of each scale in which the centre of each place lies."""
    tables = []
    for offset, (rows, columns) in zip(grid.offsets, grid.sides, strict=True):
        twice = 2 * torch.arange(side, device=device) + 1
        row, column = twice * rows // (2 * side), twice * columns // (2 * side)
        tables.append(offset + (row[:, None] * columns + column).flatten())
    return torch.stack(tables)
