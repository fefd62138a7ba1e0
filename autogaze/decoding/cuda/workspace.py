"""The kernels of a pass, in order, with what each is given; and graphs of them.

What differs from shape to shape (clips, frames, budget, length of a window) is an ordinary argument, which Triton
does not compile for. What it does compile for are the model, the dtype, and the few block sizes of `tuning.py`: see
`compiled.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from autogaze.decoding.cuda import cluster, kernels
from autogaze.decoding.cuda.buffers import Buffers
from autogaze.decoding.cuda.recording import Recording, record_pass
from autogaze.decoding.cuda.tuning import ceil, power, room_for_splits, warps_for
from autogaze.network.encoder import FrameTokens
from autogaze.network.residual import LEAST_ERROR, LEAST_GAIN, STALE_CAP, STALE_FLOOR

FEW_SLOTS = 64  # of a frame: up to here `look` reads them in one small block
CLIPS_AT_ONCE = 256  # of `begin_frame`


def start(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Start a kernel on the present stream."""
    kernel[grid](*arguments, **constants)


class Workspace:
    """A set of buffers and the passes over them: what decodes `plan.batch` clips.

    Args:
        buffers: of the clips.
        early: whether a kernel can be launched before the one before has ended; the device's by default.
        call: what is done with each kernel.
    """

    def __init__(self, buffers: Buffers, early: bool | None = None, call: Callable[..., None] = start) -> None:
        self.buffers, self.call = buffers, call
        config, width, device = buffers.config, buffers.config.hidden_size, buffers.device
        self.early = can_launch_early(device) if early is None else early
        self.eps, self.hidden = config.rms_norm_eps, config.intermediate_size
        self.widths = {"C": width, **_tiles_of(width)}
        self.heads = {"HEADS": buffers.heads, "D": buffers.head_dim}
        self.precision = {"PRECISION": "tf32" if buffers.plan.dtype == torch.bfloat16 else "ieee"}
        self.pixels = {"SIDE": buffers.side, "PX": config.patch_size, "BLOCKS": buffers.blocks}
        self.ring = (buffers.plan.ring, buffers.tokens)
        self.graphs: dict[bool, Callable[[], None]] = {}
        self.recorded: dict[object, Recording | None] = {}  # by form of clips; None: seen once
        self.records = not buffers.plan.samples  # a seed is drawn anew for every clip
        self.without_cluster, self.cluster = cluster.steps_of(buffers)

    def enqueue(self, tokens: FrameTokens, steps: list[int]) -> None:
        """All of some frames without any decision of the host: kernels of clips that are done do nothing.

        Args:
            tokens: as of `Buffers.put`.
            steps: the most that each frame can take after its prefill.
        """
        self.buffers.put(tokens)
        for most in steps:
            self.launch(prefill=True)
            for _ in range(0 if self.cluster is not None else most):  # else all came with the prefill
                self.launch(prefill=False)
            self.look()

    def run(self, prefill: bool) -> None:
        """Replay one pass, recording it the first time."""
        if self.buffers.device.type != "cuda":  # Triton's interpreter, for tests without a GPU
            return self.launch(prefill)
        if prefill not in self.graphs:
            launch = partial(self.launch, prefill)
            self.graphs[prefill] = record_pass(launch, self.buffers.carried(), self.buffers.device)
        self.graphs[prefill]()

    def launch(self, prefill: bool) -> None:
        """Start the kernels of a prefill or a step; with clusters the prefill's last one takes all steps."""
        early = self._early(prefill)
        if prefill:
            self._open_frame(early)
        self._open_rows(prefill, early)
        for layer in range(self.buffers.layers):
            self._attend(layer, prefill, early)
            if self.buffers.tunings[prefill].wide:
                self._close_layer_wide(layer, prefill, early)
            else:
                self._close_layer(layer, prefill, early)
        self._read_heads(early)
        if prefill and self.cluster is not None:
            self.cluster()
        else:
            self._choose(prefill, early)

    def look(self) -> None:
        """Put what the frame's ids have seen on the canvas; once all of them are chosen."""
        space = self.buffers
        if not space.pastes:
            return
        scales, cells = space.patch_at.shape
        per = ceil(space.plan.batch * cells, 1 << 13)  # most cells are not looked at: few programs, each of several
        every = power(space.patches + space.group)
        self.call(
            kernels.look,
            (space.plan.batch, ceil(cells, per)),
            *(space.frames, space.canvas, space.out_ids, space.out_chosen, space.patch_at, space.clock),
            *(space.plan.batch, space.plan.slots, per),
            V=cells,
            SCALES=scales,
            SB=FEW_SLOTS if space.plan.slots <= FEW_SLOTS else every,
            CHUNK=space.chunk,
            **self.pixels,
        )

    def _early(self, prefill: bool) -> dict[str, bool]:
        """Where kernels are short, each may be launched while the one before runs."""
        if self.early and self.buffers.tunings[prefill].wide:
            return {"PDL": True, "launch_pdl": True}
        return {"PDL": False}

    def _open_frame(self, early: dict[str, bool]) -> None:
        space = self.buffers
        self.call(
            kernels.begin_frame,
            (1,),
            *(space.state, space.frame_len, space.clock, space.budgets, space.running),
            *(space.plan.batch, space.plan.ring),
            V=space.visual_tokens,
            K=space.group,
            CHUNK=space.chunk,
            BLOCK=CLIPS_AT_ONCE,
            **early,
        )
        if space.pastes:
            self.call(
                kernels.find_errors,
                (space.visual_tokens, space.plan.batch),
                *(space.frames, space.canvas, space.visual, space.errors, space.weights["error_weight"], space.clock),
                C=space.config.hidden_size,
                CP=power(space.config.hidden_size),
                CHUNK=space.chunk,
                LEAST=LEAST_ERROR if space.config.perceptual else None,
                num_warps=warps_for(space.config.patch_size**2),
                **self.pixels,
                **early,
            )

    def _open_rows(self, prefill: bool, early: dict[str, bool]) -> None:
        space, weights, tuning = self.buffers, self.buffers.weights, self.buffers.tunings[prefill]
        rows = self._rows(prefill)
        self.call(
            kernels.open_rows,
            (ceil(space.plan.batch * rows, tuning.rows), self._shares(prefill)),
            *(space.x, space.query, space.keys[0], space.values[0], weights["wqk0"], weights["wv0"]),
            *(weights["frequencies"], weights["embedding"], space.visual, space.pend_ids if prefill else space.ids),
            *(space.state, space.clock, self.eps, space.plan.batch, rows, *self.ring),
            V=space.visual_tokens,
            K=space.group,
            CHUNK=space.chunk,
            BM=tuning.rows,
            NB=tuning.pairs,
            SHARED=tuning.wide,
            PREFILL=prefill,
            num_warps=tuning.warps,
            **self.heads,
            **self.widths,
            **self.precision,
            **early,
        )

    def _attend(self, layer: int, prefill: bool, early: dict[str, bool]) -> None:
        space, tuning, window = self.buffers, self.buffers.tunings[prefill], self.buffers.config.max_num_frames
        first, count = self._span(layer, prefill)
        splits = space.splits(prefill)
        for at, share, queries in _tiles(first, count, 16 if self._last(layer) else tuning.queries):
            self.call(
                kernels.attend,
                (space.plan.batch * space.heads, ceil(share, queries), splits),
                *(
                    space.query,
                    space.keys[layer],
                    space.values[layer],
                    space.attended,
                    space.out,
                    space.peak,
                    space.mass,
                ),
                *(space.arrived, space.frame_len, space.state, space.clock, space.head_dim**-0.5 * math.log2(math.e)),
                *(space.plan.batch, self._rows(prefill), at, share, *self.ring, space.frames_per_split[prefill]),
                K=space.group,
                WINDOW=window,
                V=space.visual_tokens,
                BM=queries,
                BN=tuning.keys,
                BT=tuning.tail,
                SPLITS=room_for_splits(splits, window),
                SLOTS=power(window + 1, 1),
                PREFILL=prefill,
                num_stages=tuning.attend_stages,
                num_warps=tuning.attend_warps if queries > 16 else tuning.narrow_warps,
                **self.heads,
                **self.precision,
                **early,
            )

    def _close_layer(self, layer: int, prefill: bool, early: dict[str, bool]) -> None:
        space, tuning, last = self.buffers, self.buffers.tunings[prefill], self._last(layer)
        first, count = self._span(layer, prefill)
        block = 16 if last else tuning.rows
        self.call(
            kernels.close_layer,
            (ceil(space.plan.batch * count, block),),
            *(space.x, space.last, *self._begun(layer), space.attended, *self._mlp(layer), *self._next_weights(layer)),
            *(space.state, space.clock, self.eps, space.plan.batch, self._rows(prefill), first, count, *self.ring),
            K=space.group,
            HIDDEN=self.hidden,
            BM=block,
            HB=tuning.hidden,
            NB=tuning.pairs,
            PREFILL=prefill,
            LAST=last,
            num_warps=tuning.warps,
            num_stages=tuning.stages,
            **self.heads,
            **self.widths,
            **self.precision,
            **early,
        )

    def _close_layer_wide(self, layer: int, prefill: bool, early: dict[str, bool]) -> None:
        space, tuning, last = self.buffers, self.buffers.tunings[prefill], self._last(layer)
        first, count = self._span(layer, prefill)
        block, parts = 16 if last else tuning.rows, ceil(self.hidden, tuning.hidden)
        grid, span = ceil(space.plan.batch * count, block), (space.plan.batch, self._rows(prefill), first, count)
        constants: dict[str, Any] = {"K": space.group, "BM": block, "PREFILL": prefill, "num_warps": tuning.warps}
        constants |= {**self.heads, **self.widths, **self.precision, **early}
        self.call(
            kernels.mix_rows,
            (grid, parts),
            *(space.x, space.x_spare, space.parts, space.attended, *self._mlp(layer)),
            *(space.state, space.clock, self.eps, *span, space.plan.ring),
            HIDDEN=self.hidden,
            HB=tuning.hidden,
            **constants,
        )
        self.call(
            kernels.next_layer,
            (grid, 1 if last else self._shares(prefill)),
            *(space.x_spare, space.x, space.parts, space.last, *self._begun(layer), *self._next_weights(layer)),
            *(space.state, space.clock, self.eps, *span, *self.ring),
            PARTS=parts,
            NB=tuning.pairs,
            LAST=last,
            **constants,
        )

    def _read_heads(self, early: dict[str, bool]) -> None:
        """Logits and predicted losses of the newest row."""
        space, batch = self.buffers, self.buffers.plan.batch
        columns = 32 if space.plan.dtype == torch.float32 else 64
        self.call(
            kernels.read_heads,
            (ceil(batch, 16), space.group, ceil(space.patches + 1, columns)),
            *(space.last, space.logits, space.losses, space.weights["wl"], space.weights["wt"], space.state),
            *(self.eps, batch),
            VOCABULARY=space.patches + 1,
            K=space.group,
            BM=16,
            NB=columns,
            LOSSES=not space.pastes,
            **self.widths,
            **self.precision,
            **early,
        )

    def _choose(self, prefill: bool, early: dict[str, bool]) -> None:
        space, plan = self.buffers, self.buffers.plan
        self.call(
            kernels.choose,
            (plan.batch,),
            *(space.logits, space.losses, space.errors, space.looked, space.places, space.patch_at),
            *(space.weights["strength"], space.taken, space.barred, space.state, space.frame_len, space.clock),
            *(space.requirements, space.ids, space.pend_ids, space.out_ids, space.out_chosen, space.out_loss),
            *(space.running, space.seed, space.temperature, plan.batch, plan.ring, plan.slots, int(plan.stops)),
            PATCHES=space.patches,
            PB=power(space.patches),
            K=space.group,
            KP=power(space.group),
            PLACES=space.visual_tokens if space.pastes else 0,
            MOST=space.places.shape[1],
            GRID=space.grid,
            RULE=(LEAST_GAIN, STALE_FLOOR, STALE_CAP),
            SB=FEW_SLOTS,
            CHUNK=space.chunk,
            PREFILL=prefill,
            SAMPLES=plan.samples,
            num_warps=warps_for(2 * space.visual_tokens) if space.pastes else 1,
            **early,
        )  # of one warp registers spill

    def _rows(self, prefill: bool) -> int:
        return self.buffers.rows if prefill else self.buffers.group

    def _last(self, layer: int) -> bool:
        return layer == self.buffers.layers - 1

    def _span(self, layer: int, prefill: bool) -> tuple[int, int]:
        """First row and number of rows that a layer computes: the last one the newest only."""
        rows = self._rows(prefill)
        return (rows - 1, 1) if self._last(layer) else (0, rows)

    def _shares(self, prefill: bool) -> int:
        """Programs that share the columns of queries, keys and values."""
        tuning, space = self.buffers.tunings[prefill], self.buffers
        return 2 * ceil(space.heads * space.head_dim // 2, tuning.pairs) if tuning.wide else 1

    def _begun(self, layer: int) -> tuple[torch.Tensor, ...]:
        """Where the next layer's queries, keys and values go."""
        after = min(layer + 1, self.buffers.layers - 1)
        return self.buffers.query, self.buffers.keys[after], self.buffers.values[after]

    def _next_weights(self, layer: int) -> tuple[torch.Tensor, ...]:
        weights, after = self.buffers.weights, min(layer + 1, self.buffers.layers - 1)
        return weights[f"wqk{after}"], weights[f"wv{after}"], weights["frequencies"]

    def _mlp(self, layer: int) -> tuple[torch.Tensor, ...]:
        return tuple(self.buffers.weights[f"{name}{layer}"] for name in ("wo", "wg", "wu", "wd"))


def can_launch_early(device: torch.device) -> bool:
    """Whether a device can launch a kernel before the one before has ended (Hopper and newer)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def _tiles(first: int, count: int, rows: int) -> list[tuple[int, int, int]]:
    """Launches that cover `count` rows from `first` on, as (first, count, rows of a tile): whole tiles, and a smaller
    one for the rest, since every row of a tile costs the same whether it counts or not."""
    whole = count // rows * rows
    rest = count - whole
    if not whole or not rest or power(rest) == rows:
        return [(first, count, rows)]
    return [(first, whole, rows), (first + whole, rest, power(rest))]


def _tiles_of(width: int) -> dict[str, int]:
    """A model's width as the columns of two tiles, both powers of two, the first one full."""
    first = max(16, 1 << ((width - 1).bit_length() - 1))
    return {"CA": first, "CB": power(width - first)}
