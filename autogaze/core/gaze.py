"""The gaze: which patches of each frame a model chose to look at. The one result type.

Three views of the same choice: padded slots (`ids`, `chosen`), one mask a scale (`mask`), and a packed
list without padding (`packed`) for encoders. The published dict comes and goes through `to_gazing_info`
and `from_gazing_info`. A gaze may be empty: K = 0, or a frame in which nothing is chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from autogaze.core import pictures
from autogaze.core.grid import PatchGrid

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, eq=False)
class PackedGaze:
    """Every chosen patch once, clip after clip, frame after frame, without padding."""

    ids: Tensor  # (N,) int64, local to their frame
    clip: Tensor  # (N,) int64, 0 <= clip < B
    frame: Tensor  # (N,) int64, 0 <= frame < T
    counts: Tensor  # (B, T) int64, patches of every frame; sums to N

    @property
    def frame_offsets(self) -> Tensor:
        """(B * T + 1,) int32 cumulative counts: frame t of clip b is [offsets[b*T+t], offsets[b*T+t+1])."""
        ends = self.counts.flatten().cumsum(0)
        return torch.cat([ends.new_zeros(1), ends]).to(torch.int32)


@dataclass(frozen=True, eq=False, repr=False)
class Gaze:
    """Patches chosen in each frame of a batch of clips, padded to a common count K."""

    ids: Tensor  # (B, T, K) int64, 0 <= id < grid.patches_per_frame where chosen
    chosen: Tensor  # (B, T, K) bool, False marks padding
    grid: PatchGrid
    task_loss: Tensor | None = None  # (B, T, K) float, loss predicted before each id was taken; NaN: slot not decoded

    def __post_init__(self) -> None:
        if self.ids.ndim != 3 or self.ids.shape != self.chosen.shape:
            raise ValueError(
                "ids and chosen must both be (batch, frames, slots), "
                f"got {tuple(self.ids.shape)} and {tuple(self.chosen.shape)}"
            )
        if self.chosen.dtype != torch.bool or self.ids.dtype != torch.int64:
            raise ValueError(f"ids must be int64 and chosen bool, got {self.ids.dtype} and {self.chosen.dtype}")
        if self.task_loss is not None and self.task_loss.shape != self.ids.shape:
            raise ValueError(
                f"task_loss must have the shape of ids {tuple(self.ids.shape)}, got {tuple(self.task_loss.shape)}"
            )

    @property
    def device(self) -> torch.device:
        return self.ids.device

    @property
    def counts(self) -> Tensor:
        """(B, T) int64: patches chosen in each frame."""
        return self.chosen.sum(-1)

    @property
    def ratio(self) -> Tensor:
        """(B,) float: share of each clip's patches that was chosen."""
        frames = max(1, self.ids.shape[1])
        return self.counts.sum(-1) / (frames * self.grid.patches_per_frame)

    def to(self, device: torch.device | str, **_: object) -> Gaze:
        """Move to a device like `Tensor.to`; Lightning uses it to move a batch to its device."""
        loss = None if self.task_loss is None else self.task_loss.to(device)
        return replace(self, ids=self.ids.to(device), chosen=self.chosen.to(device), task_loss=loss)

    def __repr__(self) -> str:
        clips, frames, slots = self.ids.shape
        of = ", ".join(
            (
                f"{clips} clip{'s' * (clips != 1)} x {frames} frame{'s' * (frames != 1)} x {slots} slots",
                f"ratio {float(self.ratio.mean()):.2f}" if clips and not self.ids.is_meta else "ratio -",
                f"scales {'+'.join(map(str, self.grid.scales))}",
                *([f"frame {self.grid.height_px} x {self.grid.width_px}"] if self.grid.frame_size else []),
                str(self.device),
            )
        )
        return f"Gaze({of})"

    def _repr_html_(self) -> str:
        """HTML for a notebook: `repr`, and the plot of the first clip."""
        return pictures.card(self)

    def draw(self, frames: Any, clip: int = 0, stills: int = 6) -> Image:
        """A sheet of one clip: over time its frames, the chosen patches, and what they show.

        Args:
            frames: those that were gazed at, (T, H, W, 3) uint8 RGB of the clip or (B, T, H, W, 3), of any size, or
                what else `autogaze.media.frames` takes.
            clip: its number in the batch.
            stills: most frames to draw, evenly over the clip.

        Returns:
            A PIL image, which a notebook shows.

        Raises:
            IndexError: if there is no such clip.
            ValueError: if the frames are not as many as were gazed at, or stills is below 1.
        """
        return pictures.draw(self, frames, clip, stills)

    def plot(self, clip: int = 0) -> Image:
        """Plot the number of patches of every scale chosen in each frame of one clip, as a PIL image.

        Raises:
            IndexError: if there is no such clip.
            ValueError: if the gaze has no frames.
        """
        return pictures.plot(self, clip)

    def __len__(self) -> int:
        """Clips of the batch."""
        return len(self.ids)

    def __iter__(self) -> Iterator[Gaze]:
        """Clip after clip, each a gaze of (1, T, K)."""
        return (self[index] for index in range(len(self)))

    def __getitem__(
        self, index: int | slice | Sequence[int] | Tensor | np.ndarray | tuple[int | slice | Tensor, slice]
    ) -> Gaze:
        """Some clips of the batch, as a gaze: one (1, T, K) by its number, others by a slice, indices or a mask; and of
        them a slice of the frames, `gaze[:, 4:8]`.

        Raises:
            IndexError: if there is no such clip.
            TypeError: if the index is neither of clips nor of clips and a slice of frames.
        """
        if isinstance(index, tuple) and len(index) == 2 and isinstance(index[1], slice):
            part, frames = self[index[0]], index[1]
            loss = None if part.task_loss is None else part.task_loss[:, frames]
            return replace(part, ids=part.ids[:, frames], chosen=part.chosen[:, frames], task_loss=loss)
        if isinstance(index, int | np.integer) and not isinstance(index, bool):
            clips = len(self)
            if not -clips <= index < clips:
                raise IndexError(f"no clip {index}: this gaze has {clips}")
            index = slice(int(index) % clips, int(index) % clips + 1)
        elif isinstance(index, list | np.ndarray):
            index = torch.as_tensor(index, device=self.device)
        if not isinstance(index, slice) and not (isinstance(index, Tensor) and index.ndim == 1):
            raise TypeError(
                f"a gaze is indexed by clips: a number, a slice, a list or a 1-D tensor, got {type(index).__name__}; "
                "gaze.ids[clip, frame] gives the ids of a frame"
            )
        loss = None if self.task_loss is None else self.task_loss[index]
        return replace(self, ids=self.ids[index], chosen=self.chosen[index], task_loss=loss)

    def patch_mask(self) -> Tensor:
        """(B, T, patches_per_frame) bool: True where a patch was chosen."""
        slots = self.ids.where(self.chosen, self.grid.patches_per_frame)
        mask = self.chosen.new_zeros(*self.ids.shape[:2], self.grid.patches_per_frame + 1)
        return mask.scatter_(-1, slots, True)[..., :-1]

    def mask(self, scale: int) -> Tensor:
        """Chosen patches of one scale.

        Args:
            scale: its index (0 = coarsest) or its size in pixels.

        Returns:
            (B, T, rows * columns) bool, row by row; `grid.sides` says how many rows and columns.
        """
        k = self.grid.scale_index(scale)
        start = self.grid.offsets[k]
        return self.patch_mask()[..., start : start + self.grid.patches_per_scale[k]]

    def masks(self) -> list[Tensor]:
        """`mask` of every scale, coarse to fine."""
        return list(self.patch_mask().split(list(self.grid.patches_per_scale), dim=-1))

    def boxes(self) -> Tensor:
        """(B, T, K, 4) float: left, top, right, bottom in pixels of the frame; zeros where not chosen."""
        boxes = self.grid.boxes(self.ids.where(self.chosen, 0))
        return boxes * self.chosen[..., None]

    def packed(self) -> PackedGaze:
        """The chosen patches without padding, in slot order."""
        clip, frame, _ = self.chosen.nonzero(as_tuple=True)
        return PackedGaze(self.ids[self.chosen], clip, frame, self.counts)

    @classmethod
    def join(cls, gazes: Sequence[Gaze]) -> Gaze:
        """One gaze of consecutive stretches of the same clips, such as the steps of a stream, in time order."""
        if not gazes:
            raise ValueError("there is no gaze to join")
        if any(gaze.grid != gazes[0].grid for gaze in gazes):
            raise ValueError(f"gazes to join must be on one grid, got {', '.join(str(gaze.grid) for gaze in gazes)}")
        width = max(gaze.ids.shape[-1] for gaze in gazes)

        def widen(part: Tensor, fill: float) -> Tensor:
            return torch.nn.functional.pad(part, (0, width - part.shape[-1]), value=fill)

        losses = [gaze.task_loss for gaze in gazes if gaze.task_loss is not None]
        return cls(
            torch.cat([widen(gaze.ids, 0) for gaze in gazes], dim=1),
            torch.cat([widen(gaze.chosen, False) for gaze in gazes], dim=1),
            gazes[0].grid,
            torch.cat([widen(loss, torch.nan) for loss in losses], dim=1) if len(losses) == len(gazes) else None,
        )

    def trimmed(self) -> Gaze:
        """The same gaze with choices first and no slot that every frame leaves empty."""
        order = (~self.chosen).to(torch.uint8).sort(dim=-1, stable=True).indices
        width = int(self.counts.max()) if self.chosen.numel() else 0
        order = order[..., :width]
        loss = None if self.task_loss is None else self.task_loss.gather(-1, order)
        return replace(self, ids=self.ids.gather(-1, order), chosen=self.chosen.gather(-1, order), task_loss=loss)

    def on_grid(self, grid: PatchGrid) -> Gaze:
        """The same patches on a grid that has this one's scales and more, such as a judge's.

        Raises:
            ValueError: if a scale is not on it, or patches or frames have another size.
        """
        own = self.grid
        if own == grid:
            return self
        if not set(own.scales) <= set(grid.scales) or own.patch_size != grid.patch_size or own.tile_px != grid.tile_px:
            raise ValueError(
                f"a gaze of scales {own.scales} and patch {own.patch_size} cannot be judged on "
                f"{grid.scales} and patch {grid.patch_size}"
            )
        offsets = (grid.offsets[grid.scale_index(scale)] for scale in own.scales)
        shift = torch.cat(
            [
                torch.full((patches,), theirs - ours, device=self.device)
                for patches, theirs, ours in zip(own.patches_per_scale, offsets, own.offsets, strict=True)
            ]
        )
        return replace(self, ids=self.ids + shift[self.ids] * self.chosen, grid=grid)

    @classmethod
    def from_patch_mask(cls, mask: Tensor, grid: PatchGrid) -> Gaze:
        """A gaze that lists a mask's patches in increasing order.

        Args:
            mask: (B, T, patches_per_frame) bool.
            grid: the grid that the mask is over.
        """
        if mask.ndim != 3 or mask.shape[-1] != grid.patches_per_frame:
            raise ValueError(f"mask must be (B, T, {grid.patches_per_frame}), got {tuple(mask.shape)}")
        ids = torch.arange(grid.patches_per_frame, device=mask.device).expand(mask.shape)
        return cls(ids, mask.bool(), grid).trimmed()

    def to_gazing_info(self) -> dict[str, Any]:
        """The dict that integrations of the published model expect.

        `gazing_pos` (B, N) holds id + patches_per_frame * frame, `if_padded_gazing` (B, N) marks padding,
        `num_gazing_each_frame` (T,) counts the slots of each frame (N in all), `gazing_mask` is a list of
        (B, T, patches) int64, one a scale; `scales` lists pixels. Slots that were decoded for no clip of the batch are
        left out.
        """
        decoded = self.chosen if self.task_loss is None else self.chosen | ~self.task_loss.isnan()
        used = decoded.any(dim=0)  # (T, K)
        frames = torch.arange(self.ids.shape[1], device=self.device)
        positions = self.ids + self.grid.patches_per_frame * frames[:, None]
        return {
            "gazing_pos": positions[:, used],
            "if_padded_gazing": ~self.chosen[:, used],
            "num_gazing_each_frame": used.sum(-1),
            "gazing_mask": [mask.long() for mask in self.masks()],
            "scales": list(self.grid.scales),
            "num_vision_tokens_each_frame": self.grid.patches_per_frame,
            "frame_sampling_rate": 1,
        }

    @classmethod
    def from_gazing_info(cls, info: dict[str, Any], grid: PatchGrid | None = None) -> Gaze:
        """Read the published dict.

        Args:
            info: needs `gazing_pos`, `if_padded_gazing`, `num_gazing_each_frame`.
            grid: the grid of the ids; by default made of the dict's own `scales` with 16-pixel patches.

        Raises:
            ValueError: if a key is missing, or the counts and positions contradict each other.
        """
        missing = {"gazing_pos", "if_padded_gazing", "num_gazing_each_frame"} - info.keys()
        if missing:
            raise ValueError(f"gazing info lacks {sorted(missing)}")
        grid = grid or (PatchGrid(tuple(sorted(info["scales"]))) if info.get("scales") else PatchGrid())
        if info.get("num_vision_tokens_each_frame", grid.patches_per_frame) != grid.patches_per_frame:
            raise ValueError(
                f"the gazing info is of frames with {info['num_vision_tokens_each_frame']} patches, but "
                f"{grid} has {grid.patches_per_frame}; pass the grid that its ids are on"
            )
        counts = [int(count) for count in info["num_gazing_each_frame"]]
        positions, padded = torch.as_tensor(info["gazing_pos"]), torch.as_tensor(info["if_padded_gazing"])
        if positions.ndim != 2 or positions.shape != padded.shape or positions.shape[1] != sum(counts):
            raise ValueError(
                f"gazing_pos and if_padded_gazing must be (B, {sum(counts)}) as num_gazing_each_frame "
                f"says, got {tuple(positions.shape)} and {tuple(padded.shape)}"
            )
        shape = (len(positions), len(counts), max(counts, default=0))
        ids, chosen = positions.new_zeros(shape), padded.new_zeros(shape)
        start = 0
        for frame, count in enumerate(counts):
            stop = start + count
            ids[:, frame, :count] = positions[:, start:stop] - frame * grid.patches_per_frame
            chosen[:, frame, :count] = ~padded[:, start:stop]
            start = stop
        outside = chosen & ((ids < 0) | (ids >= grid.patches_per_frame))
        if bool(outside.any()):
            raise ValueError(
                f"gazing_pos holds ids outside their frame: this grid has {grid.patches_per_frame} patches a frame"
            )
        return cls(ids.where(chosen, 0), chosen, grid)
