"""Buffers of the kernels for one set of clips: what a pass reads and writes on the device."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from autogaze.core.grid import PatchGrid
from autogaze.decoding.backends import FRAMES_AT_ONCE
from autogaze.decoding.choice import Slots
from autogaze.decoding.cuda.tuning import Tuning, ceil, frames_a_split, power, tune
from autogaze.decoding.request import Request
from autogaze.network.encoder import FrameTokens
from autogaze.network.network import GazeNetwork
from autogaze.network.residual import patch_at

# What is known of every clip: the columns of `state` (B, columns) int32, for all kernels.
COLUMNS = (
    "PEND_N",  # ids of the last frame's last group, which are fed with the next frame
    "PEND_OFFSET",  # where in the last frame's ring slot they go
    "PEND_POSITION",  # rotary position of the first of them
    "VISUAL_POSITION",  # rotary position of the frame's first visual token
    "GROUP_POSITION",  # rotary position of the first id of every group that is fed while the frame is decoded
    "TOTAL",  # tokens counted so far
    "STEP_OFFSET",  # where in the frame's ring slot the group being fed goes
    "ACTIVE",  # 1: the clip goes on with its frame
    "ROOM",  # ids the frame may still spend
    "SLOTS",  # slots decoded in this frame
)
POSITIONS = ("PEND_POSITION", "VISUAL_POSITION", "GROUP_POSITION", "TOTAL")  # those that count tokens


@dataclass(frozen=True)
class Plan:
    """Sizes that a set of buffers and graphs is made for; equal plans share them."""

    batch: int
    ring: int  # frame slots in the key/value ring
    slots: int  # ids a frame can hold, whole groups
    dtype: torch.dtype
    stops: bool
    samples: bool


class Buffers:
    """The state of `plan.batch` clips on a device.

    Args:
        model: whose clips they are.
        weights: as `weights.lay_out` returns them.
        plan: how much there must be room for.
        device: the model's by default; "meta" to know the buffers without having them.
    """

    def __init__(
        self, model: GazeNetwork, weights: dict[str, Tensor], plan: Plan, device: torch.device | str | None = None
    ) -> None:
        self.config, self.plan, self.weights = model.config, plan, weights
        self.chunk = FRAMES_AT_ONCE  # frames whose visual tokens, budgets and results are on the device at once
        self.device = model.device if device is None else torch.device(device)
        config, decoder = model.config, model.gaze_decoder
        self.pastes, self.side = model.residual_map is not None, model.vision_model.side
        self.blocks = () if model.residual_map is None else model.residual_map.blocks
        self.group, self.visual_tokens, self.patches = decoder.group, model.visual_tokens, decoder.vocabulary - 1
        self.layers, self.heads, self.head_dim = config.num_hidden_layers, config.num_attention_heads, config.head_dim
        self.rows = self.group + self.visual_tokens
        self.tokens = self.visual_tokens + plan.slots + self.group
        self.tunings = {prefill: self.tuning(prefill) for prefill in (True, False)}
        self.frames_per_split = {prefill: self._frames_per_split(prefill) for prefill in (True, False)}
        self._check_memory()
        with torch.inference_mode(False), torch.no_grad():  # whoever finds these buffers again may be in either mode
            self._tabulate()
            self._allocate()
        self._allowed: Tensor | None = None

    def tuning(self, prefill: bool) -> Tuning:
        """Block sizes for a pass."""
        return tune(self.plan.batch, self.rows if prefill else self.group, self.plan.dtype, prefill)

    def _frames_per_split(self, prefill: bool) -> int:
        rows, queries = (self.rows, self.tunings[True].queries) if prefill else (16, 16)  # of a step: one tile
        return frames_a_split(self.plan.batch, self.heads, rows, queries, self.plan.ring)

    def splits(self, prefill: bool) -> int:
        """Programs that share the attention of some rows."""
        return ceil(self.plan.ring, self.frames_per_split[prefill])

    def _cache_shape(self) -> tuple[int, ...]:
        return (self.layers, self.plan.batch, self.heads, self.plan.ring, self.tokens, self.head_dim)

    def _frames_shape(self) -> tuple[int, ...]:
        px = self.side * self.config.patch_size if self.pastes else 0
        return (self.plan.batch, self.chunk, 1, px, px)

    def _check_memory(self) -> None:
        if self.device.type != "cuda":
            return
        need = (2 * math.prod(self._cache_shape()) + math.prod(self._frames_shape())) * self.plan.dtype.itemsize
        held = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        free = torch.cuda.mem_get_info(self.device)[0] + held
        if need > free:
            raise ValueError(
                f"decoding {self.plan.batch} clips with up to {self.plan.slots} ids a frame needs "
                f"{need / 2**30:.1f} GiB for keys, values and frames, {free / 2**30:.1f} GiB are free: "
                "use a smaller batch or gazing_ratio"
            )

    def _tabulate(self) -> None:
        """Which cells patches cover."""
        patch_at, cells, self.grid = tables(self.config.grid, self.side)
        self.patch_at = patch_at.to(self.device)  # (scales, N)
        self.places = cells[: self.patches if self.pastes else 0].to(self.device)  # (P, most)

    def _allocate(self) -> None:
        plan, device, width = self.plan, self.device, self.config.hidden_size
        batch, splits = plan.batch, max(self.splits(True), self.splits(False))

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.keys, self.values = (empty(*self._cache_shape(), dtype=plan.dtype) for _ in range(2))
        self.query = empty(batch, self.heads, self.rows, self.head_dim, dtype=plan.dtype)
        self.x, self.x_spare = (empty(batch * self.rows, width) for _ in range(2))
        self.last = empty(batch, width)
        parts = max(ceil(self.config.intermediate_size, tuning.hidden) for tuning in self.tunings.values())
        rows = self.rows if self.tunings[True].wide else self.group if self.tunings[False].wide else 0
        self.parts = empty(parts, batch * rows, width)
        self.attended = empty(batch, self.heads, self.rows, self.head_dim, dtype=plan.dtype)
        self.out = empty(splits, batch, self.heads, self.rows, self.head_dim)
        self.peak, self.mass = (empty(splits, batch, self.heads, self.rows) for _ in range(2))
        self.logits = empty(batch, self.group, self.patches + 1)
        self.losses = empty(batch, self.group)
        self.visual = empty(batch, self.chunk, self.visual_tokens, width, dtype=plan.dtype)
        self.frames = empty(*self._frames_shape(), dtype=plan.dtype)
        cells = self.visual_tokens if self.pastes else 0
        self.errors = empty(batch, len(self.config.scales) + 1, cells)  # at every level
        self.budgets = empty(batch, self.chunk, dtype=torch.int32)
        self.requirements = empty(batch, self.chunk)
        self.barred = empty(self.patches, dtype=torch.int8)  # ids that may not be chosen
        self.seed, self.temperature = empty(1, dtype=torch.int32), empty(1)
        self.canvas = empty(batch, *self._frames_shape()[2:], dtype=plan.dtype)
        self.out_ids = empty(self.chunk, batch, plan.slots, dtype=torch.int32)
        self.out_chosen = empty(self.chunk, batch, plan.slots, dtype=torch.int8)
        self.out_loss = empty(self.chunk, batch, plan.slots)
        self.state = empty(batch, len(COLUMNS), dtype=torch.int32)
        self.frame_len = empty(batch, plan.ring, dtype=torch.int32)
        self.clock = empty(2, dtype=torch.int32)  # frame of the chunk, frame of the clip
        self.looked = empty(batch, cells, dtype=torch.int8)  # level of every cell in this frame
        self.taken = empty(batch, self.patches, dtype=torch.int8)
        self.ids, self.pend_ids = (empty(batch, self.group, dtype=torch.int32) for _ in range(2))
        self.arrived = empty(batch * self.heads, self.rows, dtype=torch.int32)  # splits done, of every query tile
        self.running = empty(1, dtype=torch.int32)

    def carried(self) -> list[Tensor]:
        """Tensors that a pass reads before it writes them; with all others it could be repeated."""
        fed = [self.ids, self.pend_ids, self.taken, self.looked]
        return [self.state, self.frame_len, self.clock, self.arrived, self.running, *fed]

    def reset(self) -> None:
        """Begin new clips."""
        for tensor in (self.state, self.frame_len, self.canvas):
            tensor.zero_()
        self.clock.fill_(-1)

    def ask(self, request: Request) -> None:
        """Tell the device the budgets, requirements and allowed ids of the next frames."""
        count = request.budget.shape[1]
        self.budgets[:, :count] = request.budget.to(torch.int32)
        if request.requirement is not None:
            self.requirements[:, :count] = request.requirement
        if request.allowed is not self._allowed:
            self.barred.fill_(0) if request.allowed is None else self.barred.copy_(~request.allowed)
            self._allowed = request.allowed

    def room(self, model: GazeNetwork, frames: int) -> FrameTokens | None:
        """Where the encoder can put the tokens of the next frames; None under autocast, where the types differ."""
        if model.connector.pos_embed.dtype != self.plan.dtype or torch.is_autocast_enabled(self.device.type):
            return None
        return FrameTokens(self.visual[:, :frames], self.frames[:, :frames] if self.pastes else None)

    def put(self, tokens: FrameTokens) -> None:
        """Put the tokens of the next frames where the kernels read them, unless they are there."""
        if tokens.visual.data_ptr() != self.visual.data_ptr():
            self.visual[:, : tokens.visual.shape[1]] = tokens.visual
            if tokens.grey is not None:
                self.frames[:, : tokens.grey.shape[1]] = tokens.grey
        self.clock[:1].fill_(-1)

    def results(self, count: int, width: int) -> Slots:
        """Ids, chosen and predicted losses of the last `count` frames, in the first `width` slots of each."""
        outs = (self.out_ids, self.out_chosen, self.out_loss)
        ids, chosen, loss = (part[:count, :, :width].transpose(0, 1) for part in outs)
        return ids.long(), chosen.bool(), loss.clone()


@lru_cache(maxsize=8)
def tables(grid: PatchGrid, side: int) -> tuple[Tensor, Tensor, tuple[tuple[int, ...], ...]]:
    """Tables of a grid for the kernels, int32 on the CPU.

    Returns:
        the patch (scales, N) of each scale in which each cell lies; the cells (patches, most) of every patch, -1 past
        the last; and of every scale its first patch, the one past its last, and the sides of its tile, as in
        `kernels.residual`.
    """
    with torch.inference_mode(False):
        at, patches = patch_at(grid, side, "cpu"), torch.arange(grid.patches_per_frame, device="cpu")
        inside = (at.flatten() == patches[:, None]).unflatten(1, at.shape).any(1)
        counts = inside.sum(1)
        most = power(int(counts.max()))
        first = inside.int().sort(dim=1, descending=True, stable=True)
        cells = first.indices.where(first.values > 0, -1)[:, :most]
        cells = F.pad(cells, (0, most - cells.shape[1]), value=-1).int().contiguous()
        tiles = tuple(
            (first, first + len(count), power(len(count), 1), power(int(count.max()), 1))
            for first, count in zip(grid.offsets, counts.split(grid.patches_per_scale), strict=True)
        )
        return at.int(), cells, tiles
