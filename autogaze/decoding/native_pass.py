"""A pass of the decoder in C++ (`native/`): all layers and the heads in one call, in float32 on a CPU.

It stands in for `PackedTrunk` on the same caches. The queries of a group lie in the lanes of a vector register, so that
a pass reads keys, values and weights once, in order, and never sums across lanes.
"""

from __future__ import annotations

import ctypes
import platform
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from autogaze.decoding.cache import Cache
from autogaze.decoding.choice import choose_group
from autogaze.decoding.native_build import library
from autogaze.decoding.native_error import NativeFrameResidual
from autogaze.decoding.packed import Trunk, rotate
from autogaze.network.decoder import DecoderLayer, GazeDecoder
from autogaze.network.residual import FrameResidual

if TYPE_CHECKING:
    from autogaze.model import AutoGaze

BLOCK = 16  # of native/product.h
LOG2_E = 1.4426950408889634
MOST_THREADS = 16
ALONE, MOST_ALONE = 8, 512  # passes on one thread after threads stalled: doubled each time, less when they do not


def why_not(model: AutoGaze) -> str:
    """The reason why the native library cannot decode for this model; empty if it can."""
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
    return f"there is no native library: {found}" if isinstance(found, str) else ""


def measured() -> bool:
    """Whether this is a kind of processor on which the native library was measured to be the faster one."""
    return platform.machine() in ("x86_64", "AMD64") and "AVX" in torch.backends.cpu.get_cpu_capability()


def why_not_unasked(model: AutoGaze) -> str:
    """`why_not`, and a reason where the library may work but is not known to be faster."""
    if not measured():
        return 'the native library was measured with AVX2 and AVX-512 only; decoding = "native" tries it'
    return why_not(model)


class Pass(ctypes.Structure):
    """`Pass` of native/decoder.h."""

    _fields_ = (
        [
            (name, ctypes.c_int64)
            for name in (
                "width",
                "heads",
                "head_dim",
                "hidden",
                "layers",
                "vocabulary",
                "group",
                "clips",
                "rows",
                "room",
                "start",
                "length",
                "threads",
            )
        ]
        + [("epsilon", ctypes.c_double)]
        + [
            (name, ctypes.c_void_p)
            for name in ("weights", "tokens", "turns", "keys", "values", "scratch", "scores", "parallel", "count")
        ]
    )


def openmp(name: str) -> int | None:
    """The address of a function of the OpenMP that PyTorch has loaded for everyone; None if there is none."""
    try:
        return ctypes.cast(getattr(ctypes.CDLL(None), name), ctypes.c_void_p).value
    except AttributeError:
        return None


def pack(decoder: GazeDecoder, native: ctypes.CDLL) -> Tensor:
    """All matrices as `Pass.weights` has them, with the weights of the norms and the scale of the queries folded in."""
    trunk = decoder.model
    scored = torch.cat([decoder.lm_head.weight, decoder.task_loss_prediction_head.weight])
    layers = [cast(DecoderLayer, layer) for layer in trunk.layers]
    size = sum(weight.numel() for layer in layers for weight in layer.parameters() if weight.ndim == 2)
    packed = scored.new_empty(size + (len(scored) + BLOCK) * scored.shape[1])
    end = 0

    def add(
        weight: Tensor, norm: Tensor | None = None, factor: float = 1.0, head_dim: int = 0, step: int = 1, back: int = 0
    ) -> None:
        nonlocal end
        weight, scale = weight.contiguous(), None if norm is None else norm.contiguous()
        rows, count = weight.shape
        native.autogaze_pack(
            weight.data_ptr(),
            rows,
            count,
            None if scale is None else scale.data_ptr(),
            factor,
            head_dim,
            step,
            packed.data_ptr() + 4 * (end - back),
        )
        end += (rows + -rows % BLOCK) * count

    for layer in layers:
        attention, mlp, before = layer.self_attn, layer.mlp, layer.input_layernorm.weight
        between, head_dim = layer.post_attention_layernorm.weight, attention.q_proj.out_features // attention.heads
        add(attention.q_proj.weight, before, LOG2_E * head_dim**-0.5, head_dim)
        add(attention.k_proj.weight, before, head_dim=head_dim)
        add(attention.v_proj.weight, before)
        add(attention.o_proj.weight)
        gates = mlp.gate_proj.weight  # blocks of both alternate
        add(gates, between, step=2)
        add(mlp.up_proj.weight, between, step=2, back=gates.numel() - BLOCK * gates.shape[1])
        add(mlp.down_proj.weight)
    add(scored, trunk.norm.weight)
    return packed


class NativeCache(Cache):
    """Keys of one layer lie in blocks like weights, (B, heads, room / BLOCK, head_dim, BLOCK); values as ever."""

    def __init__(self, trunk: Trunk, batch: int, window: int, capacity: int, like: Tensor) -> None:
        super().__init__(trunk, batch, window, capacity, like)
        self.room += -self.room % BLOCK
        blocked = (batch, trunk.heads, self.room // BLOCK, trunk.head_dim, BLOCK)
        self.keys = [like.new_empty(blocked) for _ in self.keys]
        self.values = [like.new_empty(batch, trunk.heads, self.room, trunk.head_dim) for _ in self.values]

    def slide(self) -> None:
        self.move(0, torch.arange(self.start, self.start + self.length))

    def move(self, to: int, sources: Tensor) -> None:
        places = torch.arange(to, to + len(sources))
        for keys, values in zip(self.keys, self.values, strict=True):
            keys[:, :, places // BLOCK, :, places % BLOCK] = keys[:, :, sources // BLOCK, :, sources % BLOCK]
            values[:, :, to : to + len(sources)] = values[:, :, sources]

    def turn(self, by: Tensor) -> None:
        places = torch.arange(self.start, self.start + self.length)
        for keys in self.keys:
            held = keys[:, :, places // BLOCK, :, places % BLOCK]  # (n, B, heads, head_dim)
            keys[:, :, places // BLOCK, :, places % BLOCK] = rotate(held, by[:, None])


class NativeTrunk(Trunk):
    """The decoder's layers and heads, of its weights as they are now; see `why_not`. For one thread at a time."""

    @torch.no_grad()
    def __init__(self, decoder: GazeDecoder) -> None:
        super().__init__(decoder)
        found = library()
        assert not isinstance(found, str), found
        self.native, self.vocabulary, self.group = found, decoder.vocabulary, decoder.group
        self.weights = pack(decoder, found)
        self.scratch = self.weights.new_empty(0)
        self.alone, self.alone_next = 0, ALONE
        mlp, norm = decoder.model.layers[0].mlp, decoder.model.norm
        self.call = Pass(
            width=norm.weight.numel(),
            heads=self.heads,
            head_dim=self.head_dim,
            hidden=mlp.gate_proj.out_features,
            layers=self.layer_count,
            vocabulary=self.vocabulary,
            group=self.group,
            epsilon=norm.eps,
            weights=self.weights.data_ptr(),
            parallel=openmp("GOMP_parallel"),
            count=openmp("omp_get_num_threads"),
        )

    def turns(self, positions: Tensor) -> Tensor:
        """As `Trunk.turns`, through NumPy, which does not wake other threads for it."""
        angles = positions.numpy()[:, None, None].astype(np.float32) * self.frequencies.numpy()
        return torch.from_numpy(np.cos(angles) + 1j * np.sin(angles))

    def scores(self, tokens: Tensor, turns: Tensor, cache: Cache) -> tuple[Tensor, Tensor]:
        """Logits (B, K, vocabulary) and predicted losses (B, K) after new tokens; see `PackedTrunk.scores`."""
        call, logits = self.call, self.group * self.vocabulary
        tokens, turns = tokens.contiguous(), torch.view_as_real(turns).contiguous()
        call.clips, call.rows = tokens.shape[:2]
        call.room, call.start, call.length = cache.room, cache.start, cache.length
        call.threads = self._threads(call.clips)
        addresses = ctypes.c_void_p * self.layer_count
        keys, values = (addresses(*(held.data_ptr() for held in side)) for side in (cache.keys, cache.values))
        call.keys, call.values = ctypes.addressof(keys), ctypes.addressof(values)
        call.tokens, call.turns = tokens.data_ptr(), turns.data_ptr()
        needed = self.native.autogaze_scratch(ctypes.addressof(call))
        if self.scratch.numel() < needed:
            self.scratch = tokens.new_empty(needed)
        scores = tokens.new_empty(call.clips, logits + self.group)
        call.scratch, call.scores = self.scratch.data_ptr(), scores.data_ptr()
        if self.native.autogaze_pass(ctypes.addressof(call)):
            self.alone, self.alone_next = self.alone_next, min(2 * self.alone_next, MOST_ALONE)
        elif call.threads > 1:
            self.alone_next = max(self.alone_next - 1, ALONE)
        return scores[:, :logits].unflatten(1, (self.group, self.vocabulary)), scores[:, logits:]

    def _threads(self, clips: int) -> int:
        """As many as PyTorch may use and attention can; one for a while where other work takes processors away, since
        threads that wait for each other are then slower than one (5 times, measured)."""
        if self.alone:
            self.alone -= 1
            return 1
        return min(torch.get_num_threads(), clips * self.heads, MOST_THREADS)

    def choose(
        self,
        logits: Tensor,
        task_loss: Tensor,
        taken: Tensor,
        temperature: float | None,
        generator: torch.Generator | None,
        error: FrameResidual | None,
    ) -> tuple[Tensor, Tensor]:
        """`choose_group` of what `scores` gave."""
        if temperature is not None or not (error is None or isinstance(error, NativeFrameResidual)):
            return choose_group(logits, task_loss, taken, temperature, generator, error)
        ids = torch.empty(logits.shape[:2], dtype=torch.int64)
        about: tuple[int | None, ...] = (None, None, None, None)
        if error is not None:
            task_loss = torch.empty(logits.shape[:2])
            about = (error.grid.address, error.errors.data_ptr(), error.level.data_ptr(), task_loss.data_ptr())
        self.native.autogaze_choose(
            logits.data_ptr(),
            taken.data_ptr(),
            ids.data_ptr(),
            len(logits),
            logits.stride(0),
            self.group,
            self.vocabulary,
            *about,
        )
        return ids, task_loss
