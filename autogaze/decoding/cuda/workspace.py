"""The kernels of a pass, in order, with what each is given; and graphs of them.

What differs from shape to shape (clips, frames, budget, length of a window) is an ordinary argument, which Triton
does not compile for. What it does compile for are the model, the dtype, and the few block sizes of `tuning.py`: see
`compiled.py`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import lru_cache, partial
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
        self.early, self.known = can_launch_early(buffers.device) if early is None else early, known_of(buffers)
        self.graphs: dict[bool, Callable[[], None]] = {}
        self.recorded: dict[object, Recording | None] = {}  # by form of clips; None: seen once
        self.records = not buffers.plan.samples  # a seed is drawn anew for every clip
        self.cluster = cluster.steps_of(buffers)

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
            self.graphs[prefill] = record_pass(launch, self.buffers.carried())
        self.graphs[prefill]()

    def launch(self, prefill: bool) -> None:
        """Start the kernels of a prefill or a step; with clusters the prefill's last one takes all steps."""
        if prefill:
            self._open_frame()
        self._open_rows(prefill)
        for layer in range(self.buffers.layers):
            self._attend(layer, prefill)
            if self.buffers.tunings[prefill].wide:
                self._close_layer_wide(layer, prefill)
            else:
                self._close_layer(layer, prefill)
        self._read_heads(prefill)
        if prefill and self.cluster is not None:
            self.cluster()
        else:
            self._choose(prefill)

    def look(self) -> None:
        """Put what the frame's ids have seen on the canvas; once all of them are chosen."""
        space = self.buffers
        if not space.pastes:
            return
        scales, cells = space.patch_at.shape
        per = ceil(space.plan.batch * cells, 1 << 13)  # most cells are not looked at: few programs, each of several
        every = power(space.patches + space.group)
        block = FEW_SLOTS if space.plan.slots <= FEW_SLOTS else every
        grid = (space.plan.batch, ceil(cells, per))
        self._start(True, kernels.look, grid, SLOTS=space.plan.slots, PER=per, SCALES=scales, SB=block)

    def _start(self, prefill: bool, kernel: Any, grid: tuple[int, ...], **given: Any) -> None:
        """Start a kernel of a pass with what is `given` for its parameters and what is known for the others. Where
        kernels are short, it is launched while the one before runs."""
        ordinary, constant = parameters(kernel.fn)
        early = self.early and self.buffers.tunings[prefill].wide and "PDL" in constant
        values = {**self.known, "PREFILL": prefill, "ROWS": self._rows(prefill), "PDL": early, **given}
        options = {name: value for name, value in given.items() if name.startswith("num_")}
        if early:
            options["launch_pdl"] = True
        constants = {name: values[name] for name in constant}
        self.call(kernel, grid, *(values[name] for name in ordinary), **constants, **options)

    def _open_frame(self) -> None:
        space = self.buffers
        self._start(True, kernels.begin_frame, (1,), BLOCK=CLIPS_AT_ONCE)
        if space.pastes:
            self._start(
                True,
                kernels.find_errors,
                (space.visual_tokens, space.plan.batch),
                weight=space.weights["error_weight"],
                CP=power(space.config.hidden_size),
                LEAST=LEAST_ERROR if space.config.perceptual else None,
                num_warps=warps_for(space.config.patch_size**2),
            )

    def _open_rows(self, prefill: bool) -> None:
        space, tuning = self.buffers, self.buffers.tunings[prefill]
        self._start(
            prefill,
            kernels.open_rows,
            (ceil(space.plan.batch * self._rows(prefill), tuning.rows), self._shares(prefill)),
            ids=space.pend_ids if prefill else space.ids,
            BM=tuning.rows,
            NB=tuning.pairs,
            SHARED=tuning.wide,
            num_warps=tuning.warps,
            **self._qkv(0),
        )

    def _attend(self, layer: int, prefill: bool) -> None:
        space, tuning, window = self.buffers, self.buffers.tunings[prefill], self.buffers.config.max_num_frames
        first, count = self._span(layer, prefill)
        splits = space.splits(prefill)
        for at, share, queries in _tiles(first, count, 16 if self._last(layer) else tuning.queries):
            self._start(
                prefill,
                kernels.attend,
                (space.plan.batch * space.heads, ceil(share, queries), splits),
                keys=space.keys[layer],
                values=space.values[layer],
                FIRST=at,
                COUNT=share,
                FRAMES=space.frames_per_split[prefill],
                BM=queries,
                BN=tuning.keys,
                BT=tuning.tail,
                SPLITS=room_for_splits(splits, window),
                SLOTS=power(window + 1, 1),
                num_stages=tuning.attend_stages,
                num_warps=tuning.attend_warps if queries > 16 else tuning.narrow_warps,
            )

    def _close_layer(self, layer: int, prefill: bool) -> None:
        tuning = self.buffers.tunings[prefill]
        rows, given = self._closing(layer, prefill)
        self._start(prefill, kernels.close_layer, (rows,), NB=tuning.pairs, num_stages=tuning.stages, **given)

    def _close_layer_wide(self, layer: int, prefill: bool) -> None:
        space, tuning = self.buffers, self.buffers.tunings[prefill]
        rows, given = self._closing(layer, prefill)
        parts = ceil(self.known["HIDDEN"], tuning.hidden)
        self._start(prefill, kernels.mix_rows, (rows, parts), x_next=space.x_spare, **given)
        shares = 1 if self._last(layer) else self._shares(prefill)
        given |= {"x": space.x_spare, "x_next": space.x, "PARTS": parts, "NB": tuning.pairs}
        self._start(prefill, kernels.next_layer, (rows, shares), **given)

    def _closing(self, layer: int, prefill: bool) -> tuple[int, dict[str, Any]]:
        """Blocks of the rows of which a layer is closed, and what the kernels that do it are given."""
        tuning, last = self.buffers.tunings[prefill], self._last(layer)
        first, count = self._span(layer, prefill)
        block = 16 if last else tuning.rows
        given: dict[str, Any] = {"FIRST": first, "COUNT": count, "BM": block, "HB": tuning.hidden, "LAST": last}
        mlp = {name: self.buffers.weights[f"{name}{layer}"] for name in ("wo", "wg", "wu", "wd")}
        given |= {"num_warps": tuning.warps, **mlp, **self._qkv(min(layer + 1, self.buffers.layers - 1))}
        return ceil(self.buffers.plan.batch * count, block), given

    def _qkv(self, layer: int) -> dict[str, torch.Tensor]:
        """Where the keys and values of a layer go, and the matrices that make them and the queries."""
        space = self.buffers
        weights = {name: space.weights[f"{name}{layer}"] for name in ("wqk", "wv")}
        return {"keys": space.keys[layer], "values": space.values[layer], **weights}

    def _read_heads(self, prefill: bool) -> None:
        """Logits and predicted losses of the newest row."""
        space = self.buffers
        columns = 32 if space.plan.dtype == torch.float32 else 64
        grid = (ceil(space.plan.batch, 16), space.group, ceil(space.patches + 1, columns))
        self._start(prefill, kernels.read_heads, grid, BM=16, NB=columns, LOSSES=not space.pastes)

    def _choose(self, prefill: bool) -> None:
        space, plan = self.buffers, self.buffers.plan
        self._start(
            prefill,
            kernels.choose,
            (plan.batch,),
            SLOTS_OUT=plan.slots,
            STOPS=int(plan.stops),
            PB=power(space.patches),
            KP=power(space.group),
            PLACES=space.visual_tokens if space.pastes else 0,
            MOST=space.places.shape[1],
            GRID=space.grid,
            RULE=(LEAST_GAIN, STALE_FLOOR, STALE_CAP),
            SB=FEW_SLOTS,
            SAMPLES=plan.samples,
            num_warps=warps_for(2 * space.visual_tokens) if space.pastes else 1,
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


def known_of(buffers: Buffers) -> dict[str, Any]:
    """Tensors and sizes of a set of buffers, under the names of the kernels' parameters."""
    config, plan = buffers.config, buffers.plan
    tensors = {name: each for name, each in vars(buffers).items() if isinstance(each, torch.Tensor)}
    width, scale = config.hidden_size, buffers.head_dim**-0.5 * math.log2(math.e)
    sizes = {"B": plan.batch, "RING": plan.ring, "TOKENS": buffers.tokens, "WINDOW": config.max_num_frames}
    sizes |= {"V": buffers.visual_tokens, "K": buffers.group, "CHUNK": buffers.chunk, "PATCHES": buffers.patches}
    sizes |= {"HEADS": buffers.heads, "D": buffers.head_dim, "HIDDEN": config.intermediate_size}
    sizes |= {"C": width, **_tiles_of(width), "VOCABULARY": buffers.patches + 1}
    precision = "tf32" if plan.dtype == torch.bfloat16 else "ieee"
    pixels = {"SIDE": buffers.side, "PX": config.patch_size, "BLOCKS": buffers.blocks}
    known = {"q": buffers.query, "eps": config.rms_norm_eps, "scale": scale, "PRECISION": precision}
    return {**buffers.weights, **tensors, **sizes, **pixels, **known}


@lru_cache(maxsize=64)
def parameters(kernel: Callable[..., None]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the ordinary parameters of a kernel, and of those that it is compiled for."""
    found = inspect.signature(kernel).parameters
    constant = tuple(name for name, each in found.items() if "constexpr" in str(each.annotation))
    return tuple(name for name in found if name not in constant), constant


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
