"""GazedViT: a gaze in front of a ViT that people already use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autogaze.core.checks import check_option
from autogaze.core.gaze import Gaze
from autogaze.core.grid import PatchGrid
from autogaze.media.preprocess import Preprocessor
from autogaze.vit.adapter import Adapter, AdapterConfig, adapter_attention, load_adapter
from autogaze.vit.attention import packed_attention
from autogaze.vit.features import PackedFeatures
from autogaze.vit.load import load_vit, pixels_of
from autogaze.vit.memory import Memory, Recall
from autogaze.vit.packing import ATTENTION, REMEMBERS, Attention, Layout, PackedIds
from autogaze.vit.patches import Taps, cut_patches
from autogaze.vit.picture import Picture
from autogaze.vit.plan import CLIP, FROZEN, Plan, adapted_plan
from autogaze.vit.towers.positions import constant
from autogaze.vit.towers.registry import tower_of
from autogaze.vit.towers.rotary import unrotated
from autogaze.vit.towers.tower import Tower
from autogaze.vit.towers.wrapped import distributed_wrapper, run, watched


class GazedViT(nn.Module):
    """A ViT that embeds and attends only the patches of a gaze.

    The model is used as it is, with its own weights; training this module trains it. With every patch of the finest
    scale chosen and `attention="frame"` the features equal the dense model's.

    Args:
        model: of timm or transformers, of a family in docs/vit-support.md; also inside a `...ForImageClassification`,
            PEFT, `torch.compile` or a parallel wrapper. Layers that are swapped before or after are used as they are
            (adapters, quantised layers), or refused by name.
        attention: what a patch sees: "frame" its own frame (as the model was trained), "block_causal" its own and
            earlier frames of the clip, "joint" the whole clip, "memory" the newest patch of every cell, from its own
            or an earlier frame, "nearest" the patch of every cell that is nearest in time, also from a later frame
            (`autogaze.vit.memory`). Class and register tokens stand in every frame, or once in a
            clip with "joint".

        size: pixels a side of the frames that `preprocessor` makes; by default those that the ViT was trained on.

    Raises:
        ValueError: if the model is not one that patches can be left out of; says why.
    """

    def __init__(self, model: nn.Module, attention: Attention = "frame", size: int | None = None) -> None:
        super().__init__()
        check_option("attention", attention, ATTENTION)
        self.attention, self.size = attention, size
        self.model = model
        self._tower = tower_of(model), model
        self._compiled: dict[str, Any] | None = None
        self._pixels: tuple[tuple[float, ...], tuple[float, ...]] | None = None  # mean and std, where a file said them
        self.adapter: Adapter | None = None
        self.adapter_config: AdapterConfig | None = None
        self.adapter_base: dict[str, Any] = {}  # of which ViT; see `autogaze.vit.adapter.fingerprint`
        self._cut = cut_patches
        self.training = self.tower.root.training  # of the ViT, whatever its wrapper says; its parts stay as they are

    @property
    def tower(self) -> Tower:
        """The parts of `model`, found anew where another model was put in its place."""
        tower, model = self._tower
        if model is not self.model:
            tower = tower_of(self.model)
            self._tower = tower, self.model
            if self._compiled is not None:
                tower.run_block = torch.compile(tower.run_block, **self._compiled)
        return tower

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        adapter: str | Path | None = None,
        attention: Attention | None = None,
        size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        *,
        adapter_scale: float = 1.0,
    ) -> GazedViT:
        """Load a pretrained ViT, in evaluation mode, and perhaps an adapter that was trained for it.

        Args:
            name: a timm model (`timm/vit_small_patch14_dinov2`), a hub id or a folder of transformers.
            adapter: a file of `autogaze adapt`, its folder, or a shipped one: "dinov2-small-nearest".
            attention: as in `GazedViT`; by default the adapter's, or for a frozen ViT "nearest" (see `recommended`).
            size: pixels a side of the frames.
            adapter_scale: 1 for the ViT as it was adapted, 0 for the frozen one; in between is often better than both.

        Raises:
            FileNotFoundError: if there is no such model or adapter.
            ValueError: if the family is not known, or the adapter was made for another ViT.
        """
        loaded = load_vit(name, device, dtype)
        loaded.model.requires_grad_(True)
        if attention is None:
            attention = CLIP.attention if adapter is None else adapter_attention(adapter)
        gazed = cls(loaded.model, attention, size)
        gazed._pixels = loaded.mean, loaded.std
        if adapter is not None:
            load_adapter(gazed, adapter, adapter_scale)
        return gazed

    @property
    def preprocessor(self) -> Preprocessor:
        """Makes uint8 frames into what this ViT takes: its size, mean and standard deviation."""
        mean, std = self._pixels or pixels_of(self.model)
        rows, columns = self.frame_px
        centre, spread = (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])
        return Preprocessor((rows, columns), centre, spread, rescale_factor=1 / 255, offset=False)

    @property
    def frame_px(self) -> tuple[int, int]:
        """(height, width) of the frames that `preprocessor` makes."""
        if self.size is not None:
            return self.size, self.size
        rows, columns = self.tower.native_side
        return rows * self.patch_size, columns * self.patch_size

    def recommended(self, stream: bool = False) -> Plan:
        """Plan the patches to give this ViT, and their spread over a clip, with the reason (`autogaze.vit.plan`).

        Args:
            stream: frames come one by one, so that none can see a later one.
        """
        if self.adapter is not None:
            return adapted_plan(self.attention)
        return FROZEN if stream else CLIP

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
        gaze = self.fitted(video, gaze)
        if capacity is not None and capacity < gaze.ids.numel() and int(gaze.chosen.sum()) > capacity:
            raise ValueError(
                f"{int(gaze.chosen.sum())} patches were chosen but capacity is {capacity}; "
                f"{gaze.ids.numel()} (clips x frames x slots) always suffices"
            )
        return self.encode_gaze(video, gaze, capacity)

    def encode_gaze(
        self,
        video: Tensor,
        gaze: Gaze,
        capacity: int | None = None,
        whole: bool = False,
        memory: Memory | None = None,
    ) -> PackedFeatures:
        """`forward` without its checks: with a capacity, or `whole`, it never asks the device anything.

        Args:
            whole: every slot is chosen, by the caller's word; there is no filler then, whatever the capacity.
            memory: of a stream, with `attention="memory"`; brought up to date.
        """
        packed = PackedIds.of_whole(gaze) if whole else PackedIds.of(gaze, capacity)
        taps = Taps.of(gaze.grid, video.shape[-2], video.shape[-1], video.device)
        clips, frames, slots = gaze.ids.shape
        static = whole or capacity is not None
        picture = Picture.of(packed, gaze, self.attention, memory) if self.attention in REMEMBERS else None
        task = _Encoding(packed, taps, gaze.grid, (clips, frames, slots), static, picture, memory)
        features, prefix = self.encode(video, task)
        joint = self.attention == "joint"
        sides = None if picture is None else picture.read(video, gaze.grid.sides[-1], memory)
        kept = None if memory is None or memory.features is None or picture is None else memory.features
        if memory is not None and picture is not None:
            kept = features.new_zeros(len(picture.newest_slot), features.shape[-1]) if kept is None else kept
            picture.remember(memory, features, kept, task.kept_keys)
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
            None if picture is None else picture.shown,
            kept,
            sides,
        )

    def encode(self, video: Tensor, task: _Encoding) -> tuple[Tensor, Tensor]:
        """Features (N, D) and prefix tokens (S, R, D) of packed patches; the part that is worth compiling."""
        self.tower.check()
        return run(self.tower.root, lambda _, video: self._encode(video, task), video)

    def _encode(self, video: Tensor, task: _Encoding) -> tuple[Tensor, Tensor]:
        tower, packed, grid = self.tower, task.packed, task.grid
        frame = packed.clip * task.shape[1] + packed.frame
        patches = self._cut(video.flatten(0, 1), frame, packed.ids, task.taps, task.static)
        layout = Layout.of(packed, self.attention, task.shape, tower.prefix_tokens)
        attend: Callable[..., Tensor] = partial(_attend, layout)
        if task.picture is not None:
            slots = 0 if task.memory is None else len(task.picture.newest_slot)
            ages = None if self.adapter is None else task.picture.ages
            layout = layout.with_keys(task.picture.shown, len(grid.scales), slots, ages)
            attend = partial(_attend, layout)
            if self.adapter is not None and len(self.adapter.age):
                attend = Aged(layout, self.adapter)
            if task.memory is not None:
                newest_row = task.picture.newest_slot
                if len(layout.patch_rows):
                    newest_row = layout.patch_rows[newest_row.clamp(min=0)].where(newest_row >= 0, newest_row)
                attend = recall = Recall(task.memory, attend, newest_row)
                task.kept_keys = recall.kept
        images = watched(tower.root)  # hooks that may look at shapes see images as in the dense model
        if images:
            attend = partial(_attend_images, layout, attend)

        def build(patches: Tensor) -> Tensor:
            tokens = tower.embed(patches)
            if (positions := tower.positions(grid)) is not None:
                tokens = tokens + positions[packed.ids]
            if self.adapter is not None:
                starts = constant(tuple(map(float, grid.offsets)), packed.ids.device)
                scale = (packed.ids[:, None] >= starts).sum(1) - 1
                tokens = tokens + self.adapter.of_scale(scale, len(grid.scales)).to(tokens.dtype)
            rows = tower.drop(layout.join(tower.prefix(), tokens))
            return layout.images(rows) if images else rows

        rows = tower.start(build, patches)
        if (rotary := tower.rotary(grid)) is not None:
            rotary = layout.join(unrotated(rotary, tower.prefix_tokens), rotary[packed.ids])
            rotary = layout.images(rotary) if images else rotary
        encoded = tower.encode(rows, attend, rotary)
        prefix, features = layout.split(layout.rows(encoded, layout.count) if images else encoded)
        return features, prefix

    def compile(self, **options: Any) -> None:
        """Compile the cutting of patches and the block, in place; one block's code serves all blocks.

        Args:
            options: of `torch.compile`; shapes are static unless it says otherwise.
        """
        options = {"dynamic": False, **options}
        self._cut, self._compiled = torch.compile(cut_patches, **options), options
        self.tower.run_block = torch.compile(self.tower.run_block, **options)

    def fitted(self, video: Tensor, gaze: Gaze) -> Gaze:
        """The gaze in this ViT's pixels. Where its finest scale has as many cells as the frames have patches of this
        ViT, cells are cells, whatever their pixels: 224 px in 16 px patches and 196 px in 14 px patches are both 14 x
        14.

        Raises:
            ValueError: if video, gaze and ViT do not fit together.
        """
        grid, patch = gaze.grid, self.patch_size
        cells = (video.shape[-2], video.shape[-1]) == tuple(side * patch for side in grid.sides[-1])
        if grid.patch_size != patch and cells and grid.frame_size is None:
            scales = tuple(side * patch for side, _ in grid.sides)
            gaze = replace(gaze, grid=PatchGrid(scales, patch), task_loss=None)
        self._check(video, gaze)
        return gaze

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
        if self.training and torch.is_grad_enabled() and distributed_wrapper(self.model) is not None:
            raise ValueError(
                "this ViT is wrapped in DistributedDataParallel inside GazedViT: its gradients would not be averaged; "
                "wrap the other way round, DistributedDataParallel(GazedViT(vit))"
            )
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
        side = max(self.frame_px) // self.patch_size
        cells = [max(1, round(side * scale / grid.scales[-1])) for scale in grid.scales]
        return tuple(sorted({count * self.patch_size for count in cells}))


@dataclass(eq=False)
class _Encoding:
    """One call of `encode`."""

    packed: PackedIds
    taps: Taps
    grid: PatchGrid
    shape: tuple[int, int, int]  # (B, T, K) of the gaze
    static: bool  # no shape depends on the data; see `cut_patches`
    picture: Picture | None = None
    memory: Memory | None = None
    kept_keys: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # of a stream, once it was encoded


class Aged:
    """Attention with memory whose keys are offset by their age; every attention of the ViT has offsets of its own."""

    def __init__(self, layout: Layout, adapter: Adapter) -> None:
        self.layout, self.adapter, self.number = layout, adapter, 0

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
        assert self.layout.key_ages is not None
        offsets = self.adapter.of_age(self.number, self.layout.key_ages)
        self.number += 1
        return packed_attention(q, k, v, self.layout, scale, offsets)


def _attend(layout: Layout, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    return packed_attention(q, k, v, layout, scale)


def _attend_images(
    layout: Layout, attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, scale: float | None = None
) -> Tensor:
    """Attention of images of rows (S, L, heads, head size)."""
    return layout.images(attend(*(layout.rows(x, layout.count) for x in (q, k, v)), scale=scale))
