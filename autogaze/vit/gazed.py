"""GazedViT: a gaze in front of a ViT that people already use."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from autogaze.core.gaze import Gaze
from autogaze.core.grid import PatchGrid
from autogaze.vit.family import tower_of
from autogaze.vit.features import PackedFeatures
from autogaze.vit.packing import ATTENTION, Layout, PackedIds, packed_attention
from autogaze.vit.patches import Taps, cut_patches
from autogaze.vit.rotary import unrotated


class GazedViT(nn.Module):
    """A ViT that embeds and attends only the patches of a gaze.

    The model is used as it is, with its own weights; training this module trains it. With every patch of the finest
    scale chosen and `attention="frame"` the features equal the dense model's.

    Args:
        model: timm's VisionTransformer, Eva or NaFlexVit; transformers' SigLIP, SigLIP2, CLIP, DINOv2 or ViT-MAE
            vision model. docs/vit-support.md lists what works in which family.
        attention: what a patch sees: "frame" its own frame (as the model was trained), "block_causal" its own and
            earlier frames of the clip, "joint" the whole clip. Class and register tokens stand in every frame, or once
            in a clip with "joint".

    Raises:
        ValueError: if the model is not one that patches can be left out of; says why.
    """

    def __init__(self, model: nn.Module, attention: str = "frame") -> None:
        super().__init__()
        if attention not in ATTENTION:
            raise ValueError(f"attention must be one of {', '.join(ATTENTION)}, got {attention!r}")
        self.attention = attention
        self.tower = tower_of(model)
        self.model = model
        self._cut = cut_patches
        self.train(model.training)

    @property
    def patch_size(self) -> int:
        """Pixels; the gaze's grid must have the same."""
        return self.tower.patch_size

    def forward(self, video: Tensor, gaze: Gaze, capacity: int | None = None) -> PackedFeatures:
        """Encode the chosen patches.

        Args:
            video: (B, T, 3, H, W) float, normalised as the ViT wants it (its mean and std, not the gaze model's).
                Any size: each scale's patches are taken from the frames as they are.
            gaze: (B, T, K) on a grid whose patch size is the ViT's.
            capacity: pack into this many rows, filled up with filler, so that no shape depends on the gaze (CUDA
                graphs, compile). B * T * K always suffices and costs no host sync; with less, one sync checks that the
                chosen patches fit. None: exactly the chosen patches, one host sync on a GPU.

        Raises:
            ValueError: if video, gaze and ViT do not fit together, or the patches do not fit the capacity.
        """
        self._check(video, gaze)
        if capacity is not None and capacity < gaze.ids.numel() and int(gaze.chosen.sum()) > capacity:
            raise ValueError(
                f"{int(gaze.chosen.sum())} patches were chosen but capacity is {capacity}; "
                f"{gaze.ids.numel()} (clips x frames x slots) always suffices"
            )
        return self.encode_gaze(video, gaze, capacity)

    def encode_gaze(
        self, video: Tensor, gaze: Gaze, capacity: int | None = None, whole: bool = False
    ) -> PackedFeatures:
        """`forward` without its checks: with a capacity, or `whole`, it never asks the device anything.

        Args:
            whole: every slot is chosen, by the caller's word; there is no filler then, whatever the capacity.
        """
        packed = PackedIds.of_whole(gaze) if whole else PackedIds.of(gaze, capacity)
        taps = Taps.of(gaze.grid, video.shape[-2], video.shape[-1], video.device)
        clips, frames, slots = gaze.ids.shape
        static = whole or capacity is not None
        features, prefix = self.encode(video, packed, taps, gaze.grid, (clips, frames, slots), static)
        joint = self.attention == "joint"
        return PackedFeatures(
            features,
            packed.ids,
            packed.clip,
            packed.frame,
            packed.offsets,
            prefix.unflatten(0, (clips, 1 if joint else frames)),
            gaze.grid,
            joint,
            slots,
            self.tower.pool,
        )

    def encode(
        self, video: Tensor, packed: PackedIds, taps: Taps, grid: PatchGrid, shape: tuple[int, int, int], static: bool
    ) -> tuple[Tensor, Tensor]:
        """Features (N, D) and prefix tokens (S, R, D) of packed patches; the part that is worth compiling.

        Args:
            shape: (B, T, K) of the gaze.
            static: no shape depends on the data; see `cut_patches`.
        """
        tower = self.tower
        patches = self._cut(video.flatten(0, 1), packed.clip * shape[1] + packed.frame, packed.ids, taps, static)
        tokens = tower.embed(patches)
        if (positions := tower.positions(grid)) is not None:
            tokens = tokens + positions[packed.ids]
        layout = Layout.of(packed, self.attention, shape, tower.prefix_tokens)
        rows = tower.drop(layout.join(tower.prefix(), tokens))
        if (rotary := tower.rotary(grid)) is not None:
            rotary = layout.join(unrotated(rotary, tower.prefix_tokens), rotary[packed.ids])
        encoded = tower.encode(rows, partial(_attend, layout), rotary)
        prefix, features = layout.split(encoded)
        return features, prefix

    def compile(self, **options: Any) -> None:
        """Compile the cutting of patches and the block, in place; one block's code serves all blocks.

        Args:
            options: of `torch.compile`; shapes are static unless it says otherwise.
        """
        options = {"dynamic": False, **options}
        self._cut = torch.compile(cut_patches, **options)
        self.tower.run_block = torch.compile(self.tower.run_block, **options)

    def _check(self, video: Tensor, gaze: Gaze) -> None:
        if video.ndim != 5 or video.shape[2] != 3 or not video.is_floating_point():
            raise ValueError(
                f"video must be (B, T, 3, H, W) float, got {video.dtype} {tuple(video.shape)}; see Preprocessor"
            )
        if video.shape[:2] != gaze.ids.shape[:2]:
            raise ValueError(
                f"video has {video.shape[0]} clips of {video.shape[1]} frames, the gaze "
                f"{gaze.ids.shape[0]} of {gaze.ids.shape[1]}"
            )
        if gaze.grid.patch_size != self.patch_size:
            raise ValueError(
                f"the gaze's patches have {gaze.grid.patch_size} px, this ViT's {self.patch_size} px; ask for the gaze "
                f"with model.generate(video, ..., target_scales={self.target_scales(gaze.grid)}, "
                f"target_patch_size={self.patch_size}); with gaze_stride=2 it is chosen with fewer pixels, faster and "
                "coarser, where the frame has several tiles"
            )
        if video.device != gaze.device:
            raise ValueError(f"video is on {video.device}, the gaze on {gaze.device}; move one with .to()")
        if self.training and self.tower.attention_dropout > 0:
            raise ValueError(
                f"this ViT has attention dropout {self.tower.attention_dropout}, which packed attention does not have; "
                "train it with attention dropout 0"
            )

    def target_scales(self, grid: PatchGrid | None = None) -> tuple[int, ...]:
        """Scales in pixels at which to ask for a gaze for this ViT: its own size and, below it, a grid's proportions.

        SigLIP SO400M/14 at 378 px and the published grid: 54, 108, 189 and 378 px rounded to whole patches.
        """
        grid = grid or PatchGrid()
        side = max(self.tower.native_side)
        cells = [max(1, round(side * scale / grid.scales[-1])) for scale in grid.scales]
        return tuple(sorted({count * self.patch_size for count in cells}))


def _attend(layout: Layout, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    return packed_attention(q, k, v, layout, scale)
