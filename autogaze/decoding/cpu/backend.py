"""The decoder in C++ (`decoder.cpp`): a pass is all layers and the heads in one call, in float32 on a CPU.

It runs the loop of `autogaze.decoding.reference` on a memory of its own. The queries of a group lie in the lanes of a
vector register, so that a pass reads keys, values and weights once, in order, and never sums across lanes.
"""

from __future__ import annotations

import ctypes
import os
import platform
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor

from autogaze.decoding.cpu.build import library, loaded
from autogaze.decoding.cpu.residual import NativeResidualMap, residual_map
from autogaze.decoding.reference import LoopDecoding, Memory
from autogaze.decoding.request import Request
from autogaze.decoding.weights import fold
from autogaze.network.decoder import DecoderLayer, GazeDecoder
from autogaze.network.network import GazeNetwork
from autogaze.network.residual import FrameResidual

BLOCK = 16  # of product.h
LOG2_E = 1.4426950408889634
MOST_THREADS = 16
ALONE, MOST_ALONE = 8, 512  # passes on one thread after threads stalled: doubled each time, less when they do not


def why_not(model: GazeNetwork, asked: bool) -> str:
    """The reason why C++ cannot decode for this model, or should not unless asked to; empty if it can."""
    if not asked and not measured():
        return 'the C++ was measured with AVX2 and AVX-512 only; decoding = "cpu" tries it'
    if model.device.type != "cpu":
        return f"the model is on {model.device.type}"
    if any(weight.dtype != torch.float32 for weight in model.gaze_decoder.parameters()):
        return "it computes in float32 only"
    if torch.is_autocast_enabled("cpu"):
        return "it computes in float32, not under autocast"
    config = model.config
    wide = (config.hidden_size, config.intermediate_size, config.num_attention_heads * config.head_dim)
    if config.head_dim not in (16, 32, 64) or any(size % BLOCK for size in wide):
        return (
            f"it needs a head_dim of 16, 32 or 64 and widths that are multiples of {BLOCK}, "
            f"this model has {config.head_dim} and {', '.join(map(str, wide))}"
        )
    found = library()
    return f"there is no C++ library: {found}" if isinstance(found, str) else ""


def measured() -> bool:
    """Whether this is a kind of processor on which the C++ was measured to be the faster one."""
    return platform.machine() in ("x86_64", "AMD64") and "AVX" in torch.backends.cpu.get_cpu_capability()


def means(model: GazeNetwork) -> str:
    """A line on how this back end decodes, for `autogaze info`."""
    return "C++ compiled for this processor"


def begin(model: GazeNetwork, request: Request, frames: int, stream: bool) -> LoopDecoding:
    """See `backends.begin`."""
    wait_shortly()
    rule = None if model.residual_map is None else residual_map(model.residual_map, model.grid)
    passes = Passes(model.gaze_decoder, rule if isinstance(rule, NativeResidualMap) else None)
    return LoopDecoding(model, request, frames, partial(NativeMemory, passes), rule)


def openmp(name: str) -> int | None:
    """The address of a function of the OpenMP that PyTorch has loaded for everyone; None if there is none."""
    try:
        return ctypes.cast(getattr(ctypes.CDLL(None), name), ctypes.c_void_p).value
    except AttributeError:
        return None


def wait_shortly() -> None:
    """Keep OpenMP's threads from spinning where they wait, on a machine of few processors and once a process, unless
    the environment says how they shall wait."""
    processors, parallel = os.cpu_count() or 1, openmp("GOMP_parallel")
    told = any(name in os.environ for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"))
    if parallel and not told and torch.get_num_threads() > 1 and processors <= MOST_THREADS:
        loaded().autogaze_wait_shortly(parallel, processors)


def pack(decoder: GazeDecoder, native: ctypes.CDLL) -> Tensor:
    """All matrices as `weights` of decoder.h: in blocks of rows, the scale of the queries folded in."""
    layers, logits, losses = fold(decoder)
    scored = torch.cat([logits, losses])
    size = sum(weight.numel() for layer in layers for weight in layer)
    packed = scored.new_empty(size + (len(scored) + BLOCK) * scored.shape[1])
    end = 0

    def add(weight: Tensor, factor: float = 1.0, head_dim: int = 0, step: int = 1, back: int = 0) -> None:
        nonlocal end
        weight, to = weight.contiguous(), packed.data_ptr() + 4 * (end - back)
        rows, count = weight.shape
        native.autogaze_pack(weight.data_ptr(), rows, count, factor, head_dim, step, to)
        end += (rows + -rows % BLOCK) * count

    head_dim = cast(DecoderLayer, decoder.model.layers[0]).self_attn.q_proj.out_features
    head_dim //= cast(DecoderLayer, decoder.model.layers[0]).self_attn.heads
    for layer in layers:
        add(layer.query, LOG2_E * head_dim**-0.5, head_dim)
        add(layer.key, head_dim=head_dim)
        add(layer.value)
        add(layer.out)
        add(layer.gate, step=2)  # blocks of both alternate
        add(layer.up, step=2, back=layer.gate.numel() - BLOCK * layer.gate.shape[1])
        add(layer.down)
    add(scored)
    return packed


class Passes(ctypes.Structure):
    """Passes over the decoder with its weights as they are now, for one thread at a time: `Pass` of decoder.h.

    Args:
        decoder: whose passes these are.
        rule: the residual map, if that is in C++ too.
    """

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("width", "heads", "head_dim", "hidden", "layers", "vocabulary", "group")),
        *((name, ctypes.c_int64) for name in ("clips", "rows", "room", "start", "length", "threads")),
        ("epsilon", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("weights", "tokens", "turns", "keys", "values", "scratch", "scores")),
        *((name, ctypes.c_void_p) for name in ("parallel", "count")),
    )

    @torch.no_grad()
    def __init__(self, decoder: GazeDecoder, rule: NativeResidualMap | None = None) -> None:
        self.decoder, self.native, self.rule = decoder, loaded(), rule
        self.packed = pack(decoder, self.native)
        self.working = self.packed.new_empty(0)  # room to work in
        self.alone, self.alone_next = 0, ALONE
        trunk, first = decoder.model, cast(DecoderLayer, decoder.model.layers[0])
        super().__init__(
            width=trunk.norm.weight.numel(),
            heads=first.self_attn.heads,
            head_dim=first.self_attn.q_proj.out_features // first.self_attn.heads,
            hidden=first.mlp.gate_proj.out_features,
            layers=len(trunk.layers),
            vocabulary=decoder.vocabulary,
            group=decoder.group,
            epsilon=trunk.norm.eps,
            weights=self.packed.data_ptr(),
            parallel=openmp("GOMP_parallel"),
            count=openmp("omp_get_num_threads"),
        )

    def run(self, tokens: Tensor, turns: Tensor, memory: Memory) -> Tensor:
        """Scores (B, K x vocabulary + K), logits and predicted losses, after new tokens (B, n, width)."""
        tokens, turns = tokens.contiguous(), torch.view_as_real(turns).contiguous()
        self.clips, self.rows = tokens.shape[:2]
        self.room, self.start, self.length = memory.room, memory.start, memory.length
        self.threads = self.usable_threads(self.clips)
        addresses = ctypes.c_void_p * self.layers
        keys, values = (addresses(*(held.data_ptr() for held in side)) for side in (memory.keys, memory.values))
        self.keys, self.values = ctypes.addressof(keys), ctypes.addressof(values)
        self.tokens, self.turns = tokens.data_ptr(), turns.data_ptr()
        needed = self.native.autogaze_scratch(ctypes.addressof(self))
        if self.working.numel() < needed:
            self.working = tokens.new_empty(needed)
        scores = tokens.new_empty(self.clips, self.group * self.vocabulary + self.group)
        self.scratch, self.scores = self.working.data_ptr(), scores.data_ptr()
        if self.native.autogaze_pass(ctypes.addressof(self)):
            self.alone, self.alone_next = self.alone_next, min(2 * self.alone_next, MOST_ALONE)
        elif self.threads > 1:
            self.alone_next = max(self.alone_next - 1, ALONE)
        return scores

    def usable_threads(self, clips: int) -> int:
        """As many as PyTorch may use and attention can; one for a while where other work takes processors away, since
        threads that wait for each other are then slower than one (5 times, measured)."""
        if self.alone:
            self.alone -= 1
            return 1
        return min(torch.get_num_threads(), clips * self.heads, MOST_THREADS)


class NativeMemory(Memory):
    """Keys of one layer lie in blocks like weights, (B, heads, room / BLOCK, head_dim, BLOCK); values as ever."""

    def __init__(self, passes: Passes, batch: int, window: int, capacity: int) -> None:
        self.passes = passes
        self.last_turns: tuple[Tensor | None, Tensor] = None, torch.empty(0, device="cpu")
        super().__init__(passes.decoder, batch, window, capacity)

    def allocate(self) -> tuple[list[Tensor], list[Tensor]]:
        self.room += -self.room % BLOCK
        keys, values = super().allocate()
        return [held.view(self.batch, self.heads, -1, self.head_dim, BLOCK) for held in keys], values

    def turns(self, positions: Tensor) -> Tensor:
        """(n, 1, head_dim / 2) complex rotation of every position (n,), by NumPy, which wakes no other threads."""
        angles = positions.numpy()[:, None, None].astype(np.float32) * self.decoder.model.frequencies.numpy()
        return torch.from_numpy(np.cos(angles) + 1j * np.sin(angles))

    def scores(self, tokens: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        if positions is not self.last_turns[0]:  # all groups of a frame have the same
            self.last_turns = positions, self.turns(positions)
        scores, vocabulary = self.passes.run(tokens, self.last_turns[1], self), self.decoder.vocabulary
        logits = self.decoder.group * vocabulary
        return scores[:, :logits].unflatten(1, (-1, vocabulary)), scores[:, logits:]

    def slide(self) -> None:
        sources, places = self._places(), torch.arange(self.length, device="cpu")
        for keys, values in zip(self.keys, self.values, strict=True):
            keys[:, :, places // BLOCK, :, places % BLOCK] = keys[:, :, sources // BLOCK, :, sources % BLOCK]
            values[:, :, : self.length] = values[:, :, sources]

    def turn(self, by: int) -> None:
        places, turns = self._places(), self.turns(torch.tensor([by], device="cpu"))
        for keys in self.keys:
            held = keys[:, :, places // BLOCK, :, places % BLOCK]  # (n, B, heads, head_dim), pairs side by side
            pairs = torch.view_as_complex(held.unflatten(-1, (-1, 2)).contiguous())
            keys[:, :, places // BLOCK, :, places % BLOCK] = torch.view_as_real(pairs * turns[:, None]).flatten(-2)

    def _places(self) -> Tensor:
        """Places of the tokens held."""
        return torch.arange(self.start, self.start + self.length, device="cpu")

    def choose(
        self, logits: Tensor, task_loss: Tensor, taken: Tensor, request: Request, error: FrameResidual | None
    ) -> tuple[Tensor, Tensor]:
        rule = self.passes.rule
        if request.temperature is not None or (error is not None and rule is None):
            return super().choose(logits, task_loss, taken, request, error)
        ids = torch.empty(logits.shape[:2], dtype=torch.int64, device="cpu")
        about: tuple[int | None, ...] = (None, None, None, None)
        if error is not None and rule is not None:
            task_loss = torch.empty(logits.shape[:2], dtype=torch.float32, device="cpu")
            about = (ctypes.addressof(rule), error.errors.data_ptr(), error.level.data_ptr(), task_loss.data_ptr())
        self.passes.native.autogaze_choose(
            logits.data_ptr(),
            taken.data_ptr(),
            ids.data_ptr(),
            len(logits),
            logits.stride(0),
            self.decoder.group,
            self.decoder.vocabulary,
            *about,
        )
        return ids, task_loss
