"""Decoding on a GPU: Triton kernels in CUDA graphs, many clips side by side.

Two graphs do everything: a prefill (the rest of the last frame and a frame's visual tokens) and a step (one group of
ids). A frame is one replay of the first and a few of the second; the kernels keep all state on the device. For few
clips one kernel takes all steps (see `cluster`) and is part of the first graph: a frame is one replay. Without a
requirement the host knows how many steps there are and never waits. With one, it looks at a counter in pinned memory
that is one step old, so the device never waits for the host either.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import threading
import warnings
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from autogaze.decoding.choice import Slots
from autogaze.decoding.cuda import cluster
from autogaze.decoding.cuda.buffers import COLUMNS, POSITIONS, Buffers, Plan
from autogaze.decoding.cuda.recording import Recording
from autogaze.decoding.cuda.weights import lay_out
from autogaze.decoding.request import Request
from autogaze.network.decoder import rotate, rotation
from autogaze.network.encoder import EncoderCache
from autogaze.network.network import GazeNetwork

if TYPE_CHECKING:
    from autogaze.decoding.cuda.workspace import Workspace

IMAGES = 512  # most frames of all clips that are recorded whole: what is recorded keeps its memory
FORMS = 2  # most forms of clips that a workspace keeps recorded
REBASE_AT = 1 << 17  # tokens after which cached positions are moved back, so that rotary angles stay exact


def why_not(model: GazeNetwork, asked: bool) -> str:
    """The reason why the kernels cannot decode for this model; empty if they can."""
    if model.device.type != "cuda":
        return f"the model is on {model.device.type}, and the kernels need a CUDA device"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (it comes with the CUDA builds of PyTorch)"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "Triton compiles for this machine as it runs, and there is no C compiler: install gcc, or set CC"
    if torch.cuda.get_device_capability(model.device) < (8, 0):
        return "the kernels need a GPU of compute capability 8.0 (Ampere) or newer"
    config = model.config
    if config.head_dim not in (16, 32, 64):
        return f"the kernels handle a head_dim of 16, 32 or 64, this model has {config.head_dim}"
    if config.num_attention_heads * config.head_dim != config.hidden_size:
        return "the kernels need heads as wide as the model"
    if config.grid.patches_per_frame > 4096 or config.num_multi_token_pred > model.visual_tokens:
        return "the kernels handle up to 4096 patches a frame, and groups no larger than a frame's visual tokens"
    return ""


def means(model: GazeNetwork) -> str:
    """How this back end decodes on the model's device, for `autogaze info`."""
    reason = cluster.why_not(model.device, cluster.shape_for(model.config))
    few = f"up to {cluster.MOST_CLIPS} clips in bfloat16 take one kernel for all steps of a frame"
    return f"CUDA graphs over Triton kernels; {f'no kernel for whole frames, since {reason}' if reason else few}"


def compute_dtype(model: GazeNetwork) -> torch.dtype:
    """bfloat16 for a bfloat16 model or under autocast, else float32."""
    if model.connector.pos_embed.dtype == torch.bfloat16:
        return torch.bfloat16
    if torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") == torch.bfloat16:
        return torch.bfloat16
    return torch.float32


class Pool:
    """Idle workspaces of a model, so that a call finds its buffers and graphs ready; a few, the oldest go first."""

    IDLE = 4

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.idle: list[Workspace] = []
        self.weights: dict[object, tuple[object, dict[str, Tensor]]] = {}  # and their version, by dtype and device

    def take(self, model: GazeNetwork, plan: Plan) -> Workspace:
        """A workspace of a plan, its buffers as somebody left them."""
        from autogaze.decoding.cuda import compiled, workspace  # which need Triton

        with self.lock:
            weights = self.weights_of(model, plan.dtype)
            if model.device.type == "cuda":  # else under Triton's interpreter
                compiled.prepare(model, weights, plan.dtype, plan.samples)
            for i, space in enumerate(self.idle):
                if space.buffers.plan == plan and space.buffers.device == model.device:
                    return self.idle.pop(i)
            return workspace.Workspace(Buffers(model, weights, plan))

    def give_back(self, space: Workspace) -> None:
        """Leave a workspace for others."""
        with self.lock:
            self.idle.append(space)
            del self.idle[: -self.IDLE]

    def weights_of(self, model: GazeNetwork, dtype: torch.dtype) -> dict[str, Tensor]:
        """The weights as they are now, where they were before: graphs hold their addresses."""
        modules = [part for part in (model.gaze_decoder, model.residual_map) if part is not None]
        parameters = [parameter for part in modules for parameter in part.parameters()]
        version = [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in parameters]
        key = (dtype, model.device)
        known, held = self.weights.get(key, (None, {}))
        if version != known:
            fresh = lay_out(model.gaze_decoder, dtype, model.residual_map)
            for name, tensor in held.items():
                tensor.copy_(fresh[name])
            held = held or fresh
            self.weights[key] = version, held
        return held


_pools: WeakKeyDictionary[GazeNetwork, Pool] = WeakKeyDictionary()


def begin(model: GazeNetwork, request: Request, frames: int, stream: bool) -> CudaDecoding:
    """See `backends.begin`."""
    # The workspaces of a model are kept beside it, so that copying or saving a model does not meet them.
    return CudaDecoding(model, _pools.setdefault(model, Pool()), request, frames, stream)


class CudaDecoding:
    """Decodes a batch of clips in a workspace that it holds until it is forgotten."""

    def __init__(self, model: GazeNetwork, pool: Pool, request: Request, frames: int, stream: bool) -> None:
        group, window = model.gaze_decoder.group, model.config.max_num_frames
        self.width = budget = int(request.budget.max())  # no frame will hold more ids
        ring = max(2, frames) if frames <= window else window + 1
        slots = group * max(1, -(-budget // group))
        stops, samples = request.requirement is not None, request.temperature is not None
        plan = Plan(len(request.budget), ring, slots, compute_dtype(model), stops, samples)
        self.model, self.pool, self.length, self.stream = model, pool, frames, stream
        self.space = pool.take(model, plan)
        self.buffers = self.space.buffers
        self.buffers.reset()
        self.seen = self.calls = 0  # frames since positions were last moved back; calls of `decode`
        self.request: Request | None = None  # that the device knows, and
        self.most: list[int] = []  # steps of its frames
        self.memory: EncoderCache | None = None
        self.frame: Recording | None = None  # of a stream
        on_gpu = self.buffers.device.type == "cuda"
        self.counts = torch.zeros(2, dtype=torch.int32, device="cpu", pin_memory=on_gpu)
        self.events = [torch.cuda.Event() for _ in range(2)] if stops and on_gpu else []
        if request.temperature is not None:
            self.buffers.temperature.fill_(request.temperature)
            generator = request.generator
            device = generator.device if generator is not None else "cpu"
            self.buffers.seed.copy_(torch.randint(0, 2**31 - 1, (1,), generator=generator, device=device))

    def __del__(self) -> None:
        space = self.__dict__.pop("space", None)
        if space is not None:
            self.pool.give_back(space)

    def decode(self, video: Tensor, request: Request) -> Slots:
        """See `backends.Decoding`."""
        self.rebase()
        if request is not self.request:  # that of a stream stays
            self.buffers.ask(request)
            self.request, self.most = request, self.steps(request)
        self.seen, self.calls, steps = self.seen + video.shape[1], self.calls + 1, self.most
        recorded = self._recorded_frame(video, steps) if self.stream else self._recorded_clips(video, steps)
        if recorded is not None:
            return recorded.decode(video)
        room = self.buffers.room(self.model, video.shape[1])
        memory = self.memory if self.frame is None else self.frame.memory
        tokens, self.memory = self.model.embed(video.to(self.model.device), memory, room)
        if self.frame is not None:
            self.frame.remember(self.memory)
        self.buffers.put(tokens)
        for most in steps:
            self.space.run(prefill=True)
            if self.space.cluster is None:  # else the steps came with the prefill
                self._take_steps(most)
            self.space.look()
        return self.buffers.results(video.shape[1], self.width)

    def _recorded_frame(self, video: Tensor, steps: list[int]) -> Recording | None:
        """The recording of a stream's frame. The first frame has loaded the kernels that the second records."""
        if self.calls == 2 and self.memory is not None and can_record(self.space):
            try:
                self.frame = Recording(self.model, self.space, video, steps, self.width, self.memory)
            except RuntimeError as error:
                warnings.warn(f"a frame of this stream is not recorded as a CUDA graph: {error}", stacklevel=4)
        return self.frame if self.frame is not None and self.frame.takes(video, steps) else None

    def _recorded_clips(self, video: Tensor, steps: list[int]) -> Recording | None:
        """The recording of whole clips, if their form comes for the second time: the first has loaded the kernels."""
        space, model = self.space, self.model
        few = video.shape[0] * video.shape[1] <= IMAGES
        if not few or video.shape[1] != self.length or not space.records or not can_record(space):
            return None
        # Recorded kernels read parameters where they were: a model that was moved since is another one.
        parts = (model.vision_model, model.connector)
        places = tuple(parameter.data_ptr() for part in parts for parameter in part.parameters())
        autocast = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda")
        form = (tuple(video.shape), tuple(steps), self.width, autocast, places)
        if form not in space.recorded:
            space.recorded[form] = None
            while len(space.recorded) > FORMS:
                space.recorded.pop(next(iter(space.recorded)))
            return None
        if space.recorded[form] is None:
            try:
                space.recorded[form] = Recording(model, space, video, steps, self.width)
            except RuntimeError as error:
                warnings.warn(f"clips of this form are not recorded as a CUDA graph: {error}", stacklevel=4)
                space.records = False
        return space.recorded[form]

    def steps(self, request: Request) -> list[int]:
        """The most steps that each frame can take after its prefill."""
        groups = (request.budget.amax(0) + self.buffers.group - 1) // self.buffers.group
        return [max(0, most) for most in (groups - 1).tolist()]

    def _take_steps(self, most: int) -> None:
        """The steps of a frame; with a stop rule, until no clip goes on (noticed one step late)."""
        for step in range(most):
            if self.events:
                slot = step % 2
                if step >= 2:
                    self.events[slot].synchronize()
                    if int(self.counts[slot]) <= 0:
                        return
                self.counts[slot : slot + 1].copy_(self.buffers.running, non_blocking=True)
                self.events[slot].record()
            self.space.run(prefill=False)

    def rebase(self) -> None:
        """Move all positions back once they are large: only differences matter to rotary positions."""
        buffers = self.buffers
        if self.seen * buffers.tokens < REBASE_AT:
            return
        back = buffers.state[:, COLUMNS.index("TOTAL")] - buffers.plan.ring * buffers.tokens
        cos, sin = rotation(-back[:, None], buffers.weights["frequencies"])  # (B, 1, 1, D)
        cos, sin = cos[:, :, :, None], sin[:, :, :, None]
        for keys in buffers.keys:
            keys.copy_(rotate(keys.float(), cos, sin))
        for name in POSITIONS:
            buffers.state[:, COLUMNS.index(name)] -= back
        self.seen = buffers.plan.ring


def can_record(space: Workspace) -> bool:
    """Whether a frame needs no decision of the host: without clusters a stop rule is looked at between steps."""
    return space.buffers.device.type == "cuda" and (space.cluster is not None or not space.buffers.plan.stops)
