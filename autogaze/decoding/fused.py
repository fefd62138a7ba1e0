"""Decoding on a GPU: Triton kernels in CUDA graphs, many clips side by side.

Two graphs do everything: a prefill (the rest of the last frame and a frame's visual tokens) and a step (one group of
ids). A frame is one replay of the first and a few of the second; the kernels keep all state on the device. For few
clips one kernel takes all steps (see `cluster`) and is part of the first graph: a frame is one replay. Without a
requirement the host knows how many steps there are and never waits. With one, it looks at a counter in pinned memory
that is one step old, so the device never waits for the host either.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch

from autogaze.decoding import cluster
from autogaze.decoding.choice import Column
from autogaze.decoding.packed_weights import PackedWeights
from autogaze.decoding.request import Request
from autogaze.decoding.workspace import Plan, Workspace
from autogaze.network.decoder import rotate, rotation
from autogaze.network.encoder import FrameTokens

if TYPE_CHECKING:
    from autogaze.model import AutoGaze

REBASE_AT = 1 << 17  # tokens after which cached positions are moved back, so that rotary angles stay exact


def why_not(model: AutoGaze) -> str:
    """The reason why the fused kernels cannot decode for this model; empty if they can."""
    if model.device.type != "cuda":
        return f"the model is on {model.device.type}, and the kernels need a CUDA device"
    try:
        import triton  # noqa: F401
    except ImportError:
        return "Triton is not installed (it comes with the CUDA builds of PyTorch)"
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


def means(model: AutoGaze) -> str:
    """How the fused way decodes on the model's device, for `autogaze info`."""
    reason = cluster.why_not_here(model.device, cluster.shape_for(model.config))
    few = f"up to {cluster.MOST_CLIPS} clips in bfloat16 take one kernel for all steps of a frame"
    return f"CUDA graphs over Triton kernels; {f'no kernel for whole frames, since {reason}' if reason else few}"


def compute_dtype(model: AutoGaze) -> torch.dtype:
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
        self.idle: list[tuple[Plan, Workspace]] = []
        self.weights: dict[torch.dtype, PackedWeights] = {}

    def take(self, model: AutoGaze, plan: Plan) -> Workspace:
        with self.lock:
            if plan.dtype not in self.weights:
                self.weights[plan.dtype] = PackedWeights(model.gaze_decoder, plan.dtype, model.residual_map)
            self.weights[plan.dtype].refresh()
            for i, (held, workspace) in enumerate(self.idle):
                if held == plan and workspace.device == model.device:
                    del self.idle[i]
                    return workspace
            return Workspace(model, self.weights[plan.dtype], plan)

    def give_back(self, workspace: Workspace) -> None:
        with self.lock:
            self.idle.append((workspace.plan, workspace))
            del self.idle[: -self.IDLE]


_pools: WeakKeyDictionary[AutoGaze, Pool] = WeakKeyDictionary()


def pool_of(model: AutoGaze) -> Pool:
    """The workspaces of a model; kept beside it, so that copying or saving a model does not meet them."""
    return _pools.setdefault(model, Pool())


class FusedDecoding:
    """Decodes a batch of clips on a workspace that it holds until it is forgotten."""

    def __init__(self, model: AutoGaze, request: Request, frames: int) -> None:
        group, window = model.gaze_decoder.group, model.config.max_num_frames
        self.width = budget = int(request.budget.max())  # no frame will hold more ids
        ring = max(2, frames) if frames <= window else window + 1
        slots = group * max(1, -(-budget // group))
        plan = Plan(
            len(request.budget),
            ring,
            slots,
            compute_dtype(model),
            request.requirement is not None,
            request.temperature is not None,
        )
        self.pool = pool_of(model)
        self.space = self.pool.take(model, plan)
        self.space.reset()
        self.seen = 0  # frames
        self.counts = torch.zeros(2, dtype=torch.int32, pin_memory=self.space.device.type == "cuda")
        self.events = [torch.cuda.Event() for _ in range(2)] if plan.stops and self.space.device.type == "cuda" else []
        if request.temperature is not None:
            self.space.temperature.fill_(request.temperature)
            generator = request.generator
            device = generator.device if generator is not None else "cpu"
            self.space.seed.copy_(torch.randint(0, 2**31 - 1, (1,), generator=generator, device=device))

    def __del__(self) -> None:
        space = self.__dict__.pop("space", None)
        if space is not None:
            self.pool.give_back(space)

    def frames(self, tokens: FrameTokens, request: Request) -> Column:
        """Choose the ids of up to CHUNK frames; see `Decoding.frames`."""
        space, count = self.space, tokens.visual.shape[1]
        self.rebase()
        self.ask(request)
        space.begin(tokens)
        for most in self.steps(request):
            space.run(prefill=True)
            if space.cluster is None:  # else the steps came with the prefill
                self._steps(most)
            space.look()
        self.seen += count
        return space.results(count, self.width)

    def ask(self, request: Request) -> None:
        """Tell the device the budgets and requirements of the next frames."""
        space, count = self.space, request.budget.shape[1]
        space.budgets[:, :count] = request.budget.to(torch.int32)
        if request.requirement is not None:
            space.requirements[:, :count] = request.requirement
        space.in_step[0] = request.in_step

    def steps(self, request: Request) -> list[int]:
        """The most steps that each frame can take after its prefill."""
        groups = (request.budget.amax(0) + self.space.group - 1) // self.space.group
        return [max(0, most) for most in (groups - 1).tolist()]

    def _steps(self, most: int) -> None:
        """The steps of a frame; with a stop rule, until no clip goes on (noticed one step late)."""
        space = self.space
        for step in range(most):
            if self.events:
                slot = step % 2
                if step >= 2:
                    self.events[slot].synchronize()
                    if int(self.counts[slot]) <= 0:
                        return
                self.counts[slot : slot + 1].copy_(space.running, non_blocking=True)
                self.events[slot].record()
            space.run(prefill=False)

    def rebase(self) -> None:
        """Move all positions back once they are large: only differences matter to rotary positions."""
        space = self.space
        if self.seen * space.tokens < REBASE_AT:
            return
        from autogaze.decoding import kernels

        total = space.state[:, kernels.TOTAL.value]
        back = total - space.plan.ring * space.tokens
        cos, sin = rotation(-back[:, None], space.weights.tensors["frequencies"])  # (B, 1, 1, D)
        cos, sin = cos[:, :, :, None], sin[:, :, :, None]
        for keys in space.keys:
            keys.copy_(rotate(keys.float(), cos, sin))
        for column in (kernels.TOTAL, kernels.PEND_POSITION, kernels.GROUP_POSITION, kernels.VISUAL_POSITION):
            space.state[:, column.value] -= back
        self.seen = space.plan.ring
