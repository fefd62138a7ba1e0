"""Buffers and graphs of the fused kernels for one set of clips: what a pass reads and writes on the device."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from autogaze.decoding import cluster
from autogaze.decoding.choice import Column
from autogaze.decoding.packed_weights import PackedWeights
from autogaze.decoding.tuning import Tuning, tune, warps_for
from autogaze.network.encoder import FrameTokens
from autogaze.network.residual import patch_at

if TYPE_CHECKING:
    from autogaze.decoding.clip_graph import ClipGraph
    from autogaze.model import AutoGaze

CHUNK = 16  # frames whose visual tokens, budgets and results are on the device at once


@dataclass(frozen=True)
class Plan:
    """What a set of buffers and graphs is made for; equal plans share them."""

    batch: int
    ring: int  # frame slots in the key/value ring
    slots: int  # ids a frame can hold, whole groups
    dtype: torch.dtype
    stops: bool
    samples: bool


class Workspace:
    """Buffers and graphs of one plan: the state of `plan.batch` clips on the device."""

    def __init__(self, model: AutoGaze, weights: PackedWeights, plan: Plan) -> None:
        self.config, self.plan, self.weights, self.device = model.config, plan, weights, model.device
        config, decoder = model.config, model.gaze_decoder
        self.pastes, self.side = model.residual_map is not None, model.vision_model.side
        self.blocks = () if model.residual_map is None else model.residual_map.blocks
        self.group, self.visual_tokens, self.patches = decoder.group, model.visual_tokens, decoder.vocabulary - 1
        self.layers, self.heads, self.head_dim = config.num_hidden_layers, config.num_attention_heads, config.head_dim
        self.rows = self.group + self.visual_tokens
        self.tokens = self.visual_tokens + plan.slots + self.group
        self.frames_per_split = {prefill: self._frames_per_split(prefill) for prefill in (True, False)}
        self.graphs: dict[bool, torch.cuda.CUDAGraph] = {}
        self.recorded: dict[object, ClipGraph | None] = {}  # forms of clips, see `clip_graph`
        self.records = not plan.samples  # a seed is drawn anew for every clip
        self.can_launch_early = self.device.type == "cuda" and torch.cuda.get_device_capability(self.device) >= (9, 0)
        self._check_memory()
        with torch.inference_mode(False), torch.no_grad():  # whoever finds these buffers again may be in either mode
            self._tabulate()
            self._allocate()
        self.without_cluster, self.cluster = self._try_cluster()

    def _frames_per_split(self, prefill: bool) -> int:
        """Ring slots a program of attention takes: split until processors are busy, since joining costs time too."""
        tiles = _ceil(self.rows, self.tuning(prefill).queries) if prefill else 1
        programs = self.plan.batch * self.heads * tiles
        return self.plan.ring if programs >= 1024 else max(1, min(self.plan.ring, programs // 96))

    def _splits(self, prefill: bool) -> int:
        return _ceil(self.plan.ring, self.frames_per_split[prefill])

    def _cache_shape(self) -> tuple[int, ...]:
        return (self.layers, self.plan.batch, self.heads, self.plan.ring, self.tokens, self.head_dim)

    def _frames_shape(self) -> tuple[int, ...]:
        px = self.side * self.config.patch_size if self.pastes else 0
        return (self.plan.batch, CHUNK, 1, px, px)

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
        """Which places patches cover."""
        grid, patches = self.config.grid, self.patches if self.pastes else 0
        at = patch_at(grid, self.side)
        places, scales = _covered(at, self.patches)
        self.patch_at = at.int().to(self.device)  # (scales, N)
        self.places, self.scales = places[:patches].to(self.device), scales[:patches].to(self.device)  # (P, most), (P,)
        counts = (places >= 0).sum(1).split(grid.patches_per_scale)
        self.grid = tuple(
            (first, first + len(count), _power(len(count), 1), _power(int(count.max()), 1))
            for first, count in zip(grid.offsets, counts, strict=True)
        )  # see `kernels.residual_map`

    def _allocate(self) -> None:
        plan, device, width = self.plan, self.device, self.config.hidden_size
        batch, splits = plan.batch, max(self._splits(True), self._splits(False))

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.keys, self.values = (empty(*self._cache_shape(), dtype=plan.dtype) for _ in range(2))
        self.query = empty(batch, self.heads, self.rows, self.head_dim, dtype=plan.dtype)
        self.x, self.x_spare = (empty(batch * self.rows, width) for _ in range(2))
        self.last = empty(batch, width)
        tunings = {prefill: self.tuning(prefill) for prefill in (True, False)}
        parts = max(_ceil(self.config.intermediate_size, tuning.hidden) for tuning in tunings.values())
        rows = self.rows if tunings[True].wide else self.group if tunings[False].wide else 0
        self.parts = empty(parts, batch * rows, width)
        self.attended = empty(batch, self.heads, self.rows, self.head_dim, dtype=plan.dtype)
        self.arrived = empty(batch * self.heads, self.rows, dtype=torch.int32)  # splits done, of every query tile
        self.out = empty(splits, batch, self.heads, self.rows, self.head_dim)
        self.peak, self.mass = (empty(splits, batch, self.heads, self.rows) for _ in range(2))
        self.logits = empty(batch, self.group, self.patches + 1)
        self.losses = empty(batch, self.group)
        self.taken = empty(batch, self.patches, dtype=torch.int8)
        self.visual = empty(batch, CHUNK, self.visual_tokens, width, dtype=plan.dtype)
        places = self.visual_tokens if self.pastes else 0
        self.frames = empty(*self._frames_shape(), dtype=plan.dtype)
        self.canvas = empty(batch, *self._frames_shape()[2:], dtype=plan.dtype)
        self.errors = empty(batch, len(self.config.scales) + 1, places)  # at every level
        self.looked = empty(batch, places, dtype=torch.int8)  # level of every place in this frame
        self.budgets = empty(batch, CHUNK, dtype=torch.int32)
        self.requirements = empty(batch, CHUNK)
        self.out_ids = empty(CHUNK, batch, plan.slots, dtype=torch.int32)
        self.out_chosen = empty(CHUNK, batch, plan.slots, dtype=torch.int8)
        self.out_loss = empty(CHUNK, batch, plan.slots)
        from autogaze.decoding.kernels import COLUMNS

        self.state = empty(batch, COLUMNS, dtype=torch.int32)
        self.frame_len = empty(batch, plan.ring, dtype=torch.int32)
        self.ids, self.pend_ids, self.pend_slots = (empty(batch, self.group, dtype=torch.int32) for _ in range(3))
        self.clock = empty(2, dtype=torch.int32)  # frame of the chunk, frame of the clip
        self.in_step = empty(2, dtype=torch.int32)  # this frame's, the last frame's
        self.running = empty(1, dtype=torch.int32)
        self.seed, self.temperature = empty(1, dtype=torch.int32), empty(1)

    def _try_cluster(self) -> tuple[str, cluster.ClusterSteps | None]:
        """The kernel for all steps of a frame, or the reason why there is none."""
        if reason := cluster.why_not(self):
            return reason, None
        steps = cluster.ClusterSteps(self, CHUNK)
        try:
            steps.launch()  # no clip has begun, so none is decoded; but a device may be too small for the cluster
        except RuntimeError as error:
            return f"the device does not take a cluster of this size: {error}", None
        return "", steps

    def reset(self) -> None:
        """Begin new clips."""
        for tensor in (self.state, self.frame_len, self.in_step, self.canvas):
            tensor.zero_()
        self.clock.fill_(-1)

    def room(self, model: AutoGaze, frames: int) -> FrameTokens | None:
        """Where `AutoGaze.embed` may put what it says of the next frames; None: under autocast the types differ."""
        if model.connector.pos_embed.dtype != self.plan.dtype or torch.is_autocast_enabled(self.device.type):
            return None
        return FrameTokens(self.visual[:, :frames], self.frames[:, :frames] if self.pastes else None)

    def begin(self, tokens: FrameTokens) -> None:
        """Put what the encoder says of the next frames, up to CHUNK, where the kernels look, unless it is there."""
        if tokens.visual.data_ptr() != self.visual.data_ptr():
            self.visual[:, : tokens.visual.shape[1]] = tokens.visual
            if tokens.grey is not None:
                self.frames[:, : tokens.grey.shape[1]] = tokens.grey
        self.clock[:1].fill_(-1)

    def enqueue(self, tokens: FrameTokens, steps: list[int]) -> None:
        """All of some frames without any decision of the host: kernels of clips that are done do nothing.

        Args:
            tokens: as in `begin`.
            steps: the most that each frame can take.
        """
        self.begin(tokens)
        for most in steps:
            self.launch(prefill=True)
            for _ in range(0 if self.cluster is not None else most):  # else all came with the prefill
                self.launch(prefill=False)
            self.look()

    def look(self) -> None:
        """Put what the frame's ids have seen on the canvas; once all of them are chosen."""
        if not self.pastes:
            return
        from autogaze.decoding import kernels

        scales, places = self.patch_at.shape
        per = _ceil(self.plan.batch * places, 1 << 13)  # most places are not looked at: few programs, each of several
        kernels.look[(self.plan.batch, _ceil(places, per))](
            self.frames,
            self.canvas,
            self.out_ids,
            self.out_chosen,
            self.patch_at,
            self.clock,
            self.plan.batch,
            V=places,
            SCALES=scales,
            SLOTS=self.plan.slots,
            SB=_power(self.plan.slots),
            CHUNK=CHUNK,
            PER=per,
            **self._pixels(),
        )

    def _pixels(self) -> dict[str, Any]:
        """The places of a frame in pixels."""
        return {"SIDE": self.side, "PX": self.config.patch_size, "BLOCKS": self.blocks}

    def results(self, count: int, width: int) -> Column:
        """Ids, chosen and predicted losses of the last `count` frames, in the first `width` slots of each."""
        outs = (self.out_ids, self.out_chosen, self.out_loss)
        ids, chosen, loss = (part[:count, :, :width].transpose(0, 1) for part in outs)
        return ids.long(), chosen.bool(), loss.clone()

    def launch(self, prefill: bool) -> None:
        """Enqueue the kernels of one pass."""
        from autogaze.decoding import kernels

        plan, weights, width = self.plan, self.weights.tensors, self.config.hidden_size
        batch, eps, tuning = plan.batch, self.config.rms_norm_eps, self.tuning(prefill)
        rows = self.rows if prefill else self.group
        dims = {**_widths(width), "D": self.head_dim}
        ring = {"RING": plan.ring, "COLS": kernels.COLUMNS, "K": self.group}
        heads = {"HEADS": self.heads, "TOKENS": self.tokens}
        early = {"PDL": False}
        if tuning.wide and self.can_launch_early:
            early = {"PDL": True, "launch_pdl": True}
        mode = {"PREFILL": prefill, "PRECISION": "tf32" if plan.dtype == torch.bfloat16 else "ieee", **early}
        columns = {"NB": tuning.pairs}
        shares = 2 * _ceil(self.heads * self.head_dim // 2, tuning.pairs) if tuning.wide else 1
        where = (self.pend_slots, self.state, self.clock)
        if prefill:
            kernels.begin_frame[(1,)](
                self.state,
                self.frame_len,
                self.clock,
                self.budgets,
                self.in_step,
                self.running,
                batch,
                V=self.visual_tokens,
                CHUNK=CHUNK,
                BLOCK=_power(batch),
                **ring,
                **early,
            )
        if prefill and self.pastes:
            kernels.find_errors[(self.visual_tokens, batch)](
                self.frames,
                self.canvas,
                self.errors,
                weights["error_weight"],
                self.clock,
                CHUNK=CHUNK,
                num_warps=warps_for(self.config.patch_size**2),
                **self._pixels(),
                **early,
            )
        x, spare = self.x, self.x_spare
        kernels.open_rows[(_ceil(batch * rows, tuning.rows), shares)](
            x,
            self.query,
            self.keys[0],
            self.values[0],
            weights["wqk0"],
            weights["wv0"],
            weights["frequencies"],
            weights["embedding"],
            self.visual,
            self.pend_ids if prefill else self.ids,
            *where,
            eps,
            batch,
            rows,
            V=self.visual_tokens,
            CHUNK=CHUNK,
            BM=tuning.rows,
            SHARED=tuning.wide,
            num_warps=tuning.warps,
            **ring,
            **heads,
            **dims,
            **columns,
            **mode,
        )
        for layer in range(self.layers):
            last = layer == self.layers - 1
            first, count = (rows - 1, 1) if last else (0, rows)
            span = (batch, rows, first, count)
            for at, share, queries in _tiles(first, count, 16 if last else tuning.queries):
                kernels.attend[(batch * self.heads, _ceil(share, queries), self._splits(prefill))](
                    self.query,
                    self.keys[layer],
                    self.values[layer],
                    self.attended,
                    self.out,
                    self.peak,
                    self.mass,
                    self.arrived,
                    self.frame_len,
                    *where,
                    self.head_dim**-0.5 * math.log2(math.e),
                    batch,
                    rows,
                    at,
                    share,
                    STOPS=plan.stops,
                    WINDOW=self.config.max_num_frames,
                    D=self.head_dim,
                    BM=queries,
                    BN=tuning.keys,
                    FRAMES=self.frames_per_split[prefill],
                    SPLITS=_power(self._splits(prefill), 1),
                    SLOTS=_power(plan.ring, 1),
                    V=self.visual_tokens,
                    BT=tuning.tail,
                    num_stages=tuning.attend_stages,
                    num_warps=tuning.attend_warps if queries > 16 else tuning.narrow_warps,
                    **ring,
                    **heads,
                    **mode,
                )
            nxt = layer if last else layer + 1
            begun = (self.query, self.keys[nxt], self.values[nxt])
            next_weights = (weights[f"wqk{nxt}"], weights[f"wv{nxt}"], weights["frequencies"])
            mlp = (weights[f"wg{layer}"], weights[f"wu{layer}"], weights[f"wd{layer}"])
            block = 16 if last else tuning.rows
            grid, hidden = _ceil(batch * count, block), self.config.intermediate_size
            if not tuning.wide:
                kernels.close_layer[(grid,)](
                    x,
                    self.last,
                    *begun,
                    self.attended,
                    weights[f"wo{layer}"],
                    *mlp,
                    *next_weights,
                    *where,
                    eps,
                    *span,
                    HIDDEN=hidden,
                    BM=block,
                    HB=tuning.hidden,
                    LAST=last,
                    num_warps=tuning.warps,
                    num_stages=tuning.stages,
                    **ring,
                    **heads,
                    **dims,
                    **columns,
                    **mode,
                )
                continue
            parts = _ceil(hidden, tuning.hidden)
            kernels.mix_rows[(grid, parts)](
                x,
                spare,
                self.parts,
                self.attended,
                weights[f"wo{layer}"],
                *mlp,
                *where,
                eps,
                *span,
                HEADS=self.heads,
                HIDDEN=hidden,
                BM=block,
                HB=tuning.hidden,
                num_warps=tuning.warps,
                **ring,
                **dims,
                **mode,
            )
            kernels.next_layer[(grid, 1 if last else shares)](
                spare,
                x,
                self.parts,
                self.last,
                *begun,
                *next_weights,
                *where,
                eps,
                *span,
                PARTS=parts,
                BM=block,
                LAST=last,
                num_warps=tuning.warps,
                **ring,
                **heads,
                **dims,
                **columns,
                **mode,
            )
        self._launch_heads(mode["PRECISION"], early)
        if prefill and self.cluster is not None:
            self.cluster.launch()
        else:
            self._launch_choice(prefill, early)

    def _launch_heads(self, precision: object, early: dict[str, bool]) -> None:
        """Enqueue the logits and predicted losses of the newest row."""
        from autogaze.decoding import kernels

        plan, weights, width, batch = self.plan, self.weights.tensors, self.config.hidden_size, self.plan.batch
        columns = 32 if plan.dtype == torch.float32 else 64
        kernels.read_heads[(_ceil(batch, 16), self.group, _ceil(self.patches + 1, columns))](
            self.last,
            self.logits,
            self.losses,
            weights["wl"],
            weights["wt"],
            self.state,
            self.config.rms_norm_eps,
            batch,
            VOCABULARY=self.patches + 1,
            K=self.group,
            COLS=kernels.COLUMNS,
            BM=16,
            NB=columns,
            LOSSES=not self.pastes,
            PRECISION=precision,
            **_widths(width),
            **early,
        )

    def _launch_choice(self, prefill: bool, early: dict[str, bool]) -> None:
        """Enqueue the choice of a group."""
        from autogaze.decoding import kernels

        plan, weights, batch = self.plan, self.weights.tensors, self.plan.batch
        kernels.choose[(batch,)](
            self.logits,
            self.losses,
            self.errors,
            self.looked,
            self.places,
            self.patch_at,
            weights["strength"],
            self.taken,
            self.state,
            self.frame_len,
            self.clock,
            self.requirements,
            self.ids,
            self.pend_ids,
            self.pend_slots,
            self.out_ids,
            self.out_chosen,
            self.out_loss,
            self.running,
            self.seed,
            self.temperature,
            batch,
            PATCHES=self.patches,
            PB=_power(self.patches),
            K=self.group,
            KP=_power(self.group),
            PLACES=self.visual_tokens if self.pastes else 0,
            MOST=self.places.shape[1],
            GRID=self.grid,
            SLOTS_OUT=plan.slots,
            SB=_power(plan.slots),
            RING=plan.ring,
            CHUNK=CHUNK,
            COLS=kernels.COLUMNS,
            PREFILL=prefill,
            STOPS=plan.stops,
            SAMPLES=plan.samples,
            num_warps=warps_for(2 * self.visual_tokens) if self.pastes else 1,
            **early,
        )  # of one warp registers spill

    def tuning(self, prefill: bool) -> Tuning:
        """Block sizes for a pass."""
        return tune(self.plan.batch, self.rows if prefill else self.group, self.plan.dtype, prefill)

    def run(self, prefill: bool) -> None:
        """Replay one pass, capturing it the first time."""
        if self.device.type != "cuda":  # Triton's interpreter, for tests without a GPU
            return self.launch(prefill)
        if prefill not in self.graphs:
            self._capture(prefill)
        self.graphs[prefill].replay()

    def _capture(self, prefill: bool) -> None:
        """Compile (outside the capture) and record a pass, leaving the state as it was."""
        kept = [t for t in vars(self).values() if isinstance(t, Tensor) and t.numel() < 1 << 20]
        kept += [self.taken, self.looked]  # of any size: all else that is large, a pass writes again before it reads it
        saved = [t.clone() for t in kept]
        self.launch(prefill)
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self.launch(prefill)
        for tensor, before in zip(kept, saved, strict=True):
            tensor.copy_(before)
        self.graphs[prefill] = graph


def _tiles(first: int, count: int, rows: int) -> list[tuple[int, int, int]]:
    """Launches that cover `count` rows from `first` on, as (first, count, rows of a tile): whole tiles, and a smaller
    one for the rest, since every row of a tile costs the same whether it counts or not."""
    whole = count // rows * rows
    rest = count - whole
    if not whole or not rest or _power(rest) == rows:
        return [(first, count, rows)]
    return [(first, whole, rows), (first + whole, rest, _power(rest))]


def _covered(patch_at: Tensor, patches: int) -> tuple[Tensor, Tensor]:
    """Of a table of the patch (scales, N) that each place lies in: the places (patches, most) of every patch, -1 past
    the last, and its scale (patches,); int32."""
    within = patch_at.flatten() == torch.arange(patches, device=patch_at.device)[:, None]
    within = within.unflatten(1, patch_at.shape)  # (patches, scales, N)
    scales, inside = within.any(2).int().argmax(1).int(), within.any(1)
    most = _power(int(inside.sum(1).max()))
    first = inside.int().sort(dim=1, descending=True, stable=True)
    places = first.indices.where(first.values > 0, -1)[:, :most]
    return F.pad(places, (0, most - places.shape[1]), value=-1).int().contiguous(), scales.contiguous()


def _widths(width: int) -> dict[str, int]:
    """A model's width as the columns of two tiles, both powers of two, the first one full."""
    first = max(16, 1 << ((width - 1).bit_length() - 1))
    return {"C": width, "CA": first, "CB": _power(width - first)}


def _power(n: int, least: int = 16) -> int:
    """The next power of two: what a Triton block can be."""
    return max(least, 1 << (n - 1).bit_length())


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
