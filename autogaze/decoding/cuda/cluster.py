"""All ids of a frame in one kernel: a thread-block cluster a clip (`steps/steps.cu`), on Hopper or newer.

A step of a single clip is some 15 small kernels otherwise, each waiting for the one before through device memory. The
kernel is compiled at run time by NVRTC, which comes with CUDA builds of PyTorch; nothing else is needed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from autogaze.decoding.cuda.buffers import COLUMNS, Buffers
from autogaze.decoding.weights import FoldedLayer, FoldedWeights
from autogaze.network.config import AutoGazeConfig
from autogaze.network.residual import LEAST_GAIN, STALE_CAP, STALE_FLOOR

SOURCES = Path(__file__).parent / "steps"
SPLIT, WARPS, HEAD_DIM, KEYS = 2, 12, 32, 32  # blocks a head, warps a block, width of a head, keys a block of attention
PRODUCTS = 6144  # floats that the warps of a phase add up
SHARED_BYTES = 224 << 10  # that a block can have on Hopper, less a few KiB for the table of keys
MOST_CLIPS = 8  # from 16 clips on the kernels of a pass were faster on an H200: they fill the GPU


@dataclass(frozen=True)
class Shape:
    """Sizes that the kernel is compiled for, under the names of `steps.cu`."""

    C: int
    HEADS: int
    LAYERS: int
    HIDDEN: int
    K: int
    VOCABULARY: int
    PLACES: int = 0  # of a frame, in models that know what is wrong with them; else 0
    SCALES: int = 0  # of such a model
    D: int = HEAD_DIM
    SPLIT: int = SPLIT

    @property
    def blocks(self) -> int:
        """Thread blocks of a cluster."""
        return self.HEADS * self.SPLIT

    @property
    def fits(self) -> bool:
        """Whether the kernel can be made for this shape."""
        blocks, columns = self.blocks, self.C // self.blocks
        return (
            blocks <= 16
            and self.C == self.HEADS * self.D
            and self.C % 32 == self.HIDDEN % 32 == 0
            and self.C % (8 * blocks) == self.HIDDEN % (8 * blocks) == 0
            and self.K <= WARPS
            and columns // 8 * (self.C // 32) <= WARPS
            and 2 * self.HIDDEN // blocks // 8 <= WARPS
            and self.VOCABULARY <= 1024
            and self.SCALES**2 * self.PLACES < 1 << 15
            and shared_bytes(self) < SHARED_BYTES
        )


class Arguments(ctypes.Structure):
    """`Arguments` of `shape.cuh`: what the kernel is given."""

    held: dict[str, Tensor]  # the tensors whose addresses these are

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("embedding", "qkv", "mix", "gate_up", "down", "heads", "loss_head")),
        *((name, ctypes.c_void_p) for name in ("frequencies", "keys", "values", "state", "frame_len", "clock")),
        *((name, ctypes.c_void_p) for name in ("requirements", "logits", "losses", "errors", "tables", "strength")),
        *((name, ctypes.c_void_p) for name in ("barred", "pend_ids", "out_ids", "out_chosen", "out_loss", "running")),
        *((name, ctypes.c_float) for name in ("eps", "scale")),
        *((name, ctypes.c_int) for name in ("batch", "ring", "tokens", "window", "chunk", "slots", "stops")),
    ]


Kernel = Callable[[Arguments, int, int], None]  # with clips, and how many frames and blocks of keys a clip can have


def steps_of(buffers: Buffers) -> Callable[[], None] | None:
    """A call that enqueues all groups of the frame of every clip, once the prefill has left the logits of the first;
    None where the kernels of a pass take the steps."""
    if not takes(buffers):
        return None
    shape = shape_for(buffers.config)
    table = buffers.plan.ring * (1 + -(-buffers.tokens // KEYS))
    launch = partial(load_kernel(buffers.device, shape), arguments_for(buffers, shape), buffers.plan.batch, table)
    try:
        launch()  # no clip has begun, so none is decoded; but a device may be too small for the cluster
    except RuntimeError:  # the kernels of a pass take any device
        return None
    return launch


def arguments_for(buffers: Buffers, shape: Shape) -> Arguments:
    """Arguments of the kernel for a set of buffers."""
    config, plan, weights = buffers.config, buffers.plan, buffers.weights
    held = {name: weights[f"rows_{name}"] for name in ("qkv", "mix", "gate_up", "down", "heads")}
    held |= {"embedding": weights["embedding"], "loss_head": weights["wt"], "frequencies": weights["frequencies"]}
    own = vars(buffers)
    held |= {field[0]: own[field[0]] for field in Arguments._fields_ if isinstance(own.get(field[0]), Tensor)}
    if shape.PLACES:
        held |= {"tables": grid_tables(buffers.patch_at, buffers.patches), "strength": weights["strength"]}
    arguments = Arguments(
        **{name: tensor.data_ptr() for name, tensor in held.items()},
        eps=config.rms_norm_eps,
        scale=config.head_dim**-0.5 * 1.4426950408889634,  # log2(e): the kernel takes powers of two
        batch=plan.batch,
        ring=plan.ring,
        tokens=buffers.tokens,
        window=config.max_num_frames,
        chunk=buffers.chunk,
        slots=plan.slots,
        stops=plan.stops,
    )
    arguments.held = held
    return arguments


def shape_for(config: AutoGazeConfig) -> Shape:
    """The shape that a model needs the kernel compiled for."""
    places = (config.scales[-1] // config.patch_size) ** 2 if config.residual_map else 0
    return Shape(
        config.hidden_size,
        config.num_attention_heads,
        config.num_hidden_layers,
        config.intermediate_size,
        config.num_multi_token_pred,
        config.grid.patches_per_frame + 1,
        places,
        len(config.scales) if places else 0,
    )


def takes(buffers: Buffers) -> bool:
    """Whether the kernel takes the steps of these clips: few, whose ids are the best ones, in bfloat16."""
    plan = buffers.plan
    few = plan.batch <= MOST_CLIPS and plan.dtype == torch.bfloat16 and not plan.samples
    return few and buffers.device.type != "meta" and not why_not(buffers.device, shape_for(buffers.config))


@lru_cache(maxsize=64)
def why_not(device: torch.device, shape: Shape) -> str:
    """The reason why a device has no cluster kernel for a model; empty if it has."""
    if not shape.fits:
        return f"the cluster kernel is made for models of another shape than {shape}"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (9, 0):
        return "clusters need a GPU of compute capability 9.0 (Hopper) or newer"
    try:
        load_kernel(device, shape)
    except (ImportError, RuntimeError) as error:
        return f"the cluster kernel cannot be compiled: {error}"
    return ""


def output_major(weights: FoldedWeights, heads: int) -> dict[str, Tensor]:
    """The decoder's matrices as the kernel reads them, bfloat16: parts that one block needs lie together."""

    def stacked(rows: Callable[[FoldedLayer], Tensor]) -> Tensor:
        return torch.stack([rows(layer) for layer in layers]).to(torch.bfloat16).contiguous()

    def together(parts: int, *matrices: Tensor) -> Tensor:
        return torch.cat([matrix.unflatten(0, (parts, -1)) for matrix in matrices], dim=1)

    layers, logits, _ = weights
    return {
        "rows_qkv": stacked(lambda layer: together(heads, layer.query, layer.key, layer.value)),  # (heads, 3 D, C)
        "rows_gate_up": stacked(lambda layer: together(SPLIT * heads, layer.gate, layer.up)),
        "rows_mix": stacked(lambda layer: layer.out),
        "rows_down": stacked(lambda layer: layer.down),
        "rows_heads": logits.to(torch.bfloat16).contiguous(),
    }


def defines(shape: Shape) -> dict[str, int | str]:
    """Macros for the compiler: the shape, and constants that the kernel shares with other code."""
    rule = {"LEAST_GAIN": LEAST_GAIN, "STALE_FLOOR": STALE_FLOOR, "STALE_CAP": STALE_CAP}
    return {
        **asdict(shape),
        "PRODUCTS": PRODUCTS,
        "COLUMN_NAMES": ",".join(COLUMNS),
        **{name: f"{value!r}f" for name, value in rule.items()},
    }


@lru_cache(maxsize=16)
def load_kernel(device: torch.device, shape: Shape) -> Kernel:
    """Compile the kernel for a device.

    Raises:
        ImportError: if cuda-bindings, which CUDA builds of PyTorch bring along, is not installed.
        RuntimeError: if the kernel does not compile, or the device cannot hold a cluster of this size.
    """
    from cuda.bindings import driver

    major, minor = torch.cuda.get_device_capability(device)
    with torch.cuda.device(device):
        torch.cuda.current_stream().synchronize()  # the driver calls below need PyTorch's context
        module = _check(driver.cuModuleLoadData(compile_kernel(shape, f"sm_{major}{minor}")))
        function, attribute = _check(driver.cuModuleGetFunction(module, b"steps")), driver.CUfunction_attribute
        most = torch.cuda.get_device_properties(device).shared_memory_per_block_optin  # type: ignore[attr-defined]
        for name, value in (
            (attribute.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1),
            (attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, most),
        ):
            _check(driver.cuFuncSetAttribute(function, name, value))
    fixed = shared_bytes(shape)

    def launch(arguments: Arguments, clips: int, table: int) -> None:
        """Enqueue it on PyTorch's present stream."""
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        stream, grid, block = torch.cuda.current_stream().cuda_stream, (shape.blocks * clips, 1, 1), (32 * WARPS, 1, 1)
        shared = fixed + 4 * table
        _check(driver.cuLaunchKernel(function, *grid, *block, shared, stream, ctypes.addressof(pointers), 0))

    return launch


def compile_kernel(shape: Shape, architecture: str) -> bytes:
    """The kernel's machine code (cubin) for an architecture such as "sm_90"; needs no GPU."""
    from cuda.bindings import nvrtc

    headers = sorted(SOURCES.glob("*.cuh"))
    program = _check(
        nvrtc.nvrtcCreateProgram(
            (SOURCES / "steps.cu").read_bytes(),
            b"steps.cu",
            len(headers),
            [header.read_bytes() for header in headers],
            [header.name.encode() for header in headers],
        )
    )
    options = [f"--gpu-architecture={architecture}".encode(), b"--std=c++17"]
    options += [f"-D{name}={value}".encode() for name, value in defines(shape).items()]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if int(status):
        log = bytes(_check(nvrtc.nvrtcGetProgramLogSize(program)))
        nvrtc.nvrtcGetProgramLog(program, log)
        raise RuntimeError(f"NVRTC: {log.decode(errors='replace').strip()}")
    code = bytes(_check(nvrtc.nvrtcGetCUBINSize(program)))
    _check(nvrtc.nvrtcGetCUBIN(program, code))
    _check(nvrtc.nvrtcDestroyProgram(program))
    return code


def shared_bytes(shape: Shape) -> int:
    """An upper bound of `sizeof(Shared)` in `shape.cuh`, without its table."""
    rows, c, k = 16, shape.C, shape.K
    floats = rows * c + shape.blocks * k * (shape.D + 4) + -(-k * shape.VOCABULARY // 8) * 8 + PRODUCTS
    floats += 2 * WARPS * rows + k * shape.D + k
    halves = rows * (2 * (c + 32) + shape.HIDDEN + 32 + shape.D + 64) + 2 * KEYS * shape.D
    paste = 0
    if shape.PLACES:
        patches, terms = shape.VOCABULARY - 1, _terms(shape.PLACES, shape.SCALES, shape.VOCABULARY - 1)
        floats += terms + (shape.SCALES + 1) * shape.PLACES + 2 * patches + 33 * k
        paste = 2 * sum(_table_sizes(shape.PLACES, shape.SCALES, patches)) + shape.PLACES
    return 4 * floats + 2 * halves + paste + 4 * 32 + 16 * 16


def _terms(places: int, scales: int, patches: int) -> int:
    """`TERMS` of `residual.cuh`."""
    return scales * places + 3 * patches


def _table_sizes(places: int, scales: int, patches: int) -> tuple[int, ...]:
    """Entries of each member of `Tables` of `residual.cuh`."""
    return (patches + 1, patches + 1, patches, scales * places, _terms(places, scales, patches), scales**2 * places)


def grid_tables(patch_at: Tensor, patches: int) -> Tensor:
    """`Tables` of `residual.cuh`, int16: of a table of the patch (scales, N) that each place lies in."""
    scales, places = patch_at.shape
    within = patch_at.long().flatten()  # (scales x N) patch of every term
    counts = within.bincount(minlength=patches)
    first = F.pad((counts + 3) // 4, (1, 0)).cumsum(0)
    order = within.argsort(stable=True)
    rank = torch.arange(len(order), device=order.device) - F.pad(counts, (1, 0)).cumsum(0)[within[order]]
    term = torch.empty_like(within).scatter_(0, order, 4 * first[within[order]] + rank)
    index = torch.arange(scales * places, device=order.device)
    scale = torch.zeros_like(counts).scatter_(0, within, index // places)
    place = torch.full_like(index[:1], places).repeat(_terms(places, scales, patches)).scatter_(0, term, index % places)
    table = within.unflatten(0, (scales, places))
    pairs = (table[:, None] * patches + table).unique()  # patches that share a place, in order
    touching = F.pad((pairs // patches).bincount(minlength=patches), (1, 0)).cumsum(0)
    parts = (first, touching, scale, term, place, pairs % patches)
    sizes = _table_sizes(places, scales, patches)
    packed = torch.cat([F.pad(part, (0, size - len(part))) for part, size in zip(parts, sizes, strict=True)])
    return F.pad(packed, (0, -len(packed) % 8)).to(torch.int16).contiguous()


def _check(result: tuple[Any, ...]) -> Any:
    """The value of a call of cuda-bindings.

    Raises:
        RuntimeError: if it failed.
    """
    status, *values = result
    if int(status):
        raise RuntimeError(f"{type(status).__name__} {status.name}")
    return values[0] if values else None
