"""A frame of a stream as one CUDA graph: encoder, prefill, steps and results.

A single stream leaves a GPU mostly idle: it waits for the host to start some forty kernels one by one. Recorded once,
a frame costs the host a copy, one launch and three copies out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from autogaze.decoding.choice import Column
from autogaze.decoding.fused import FusedDecoding
from autogaze.decoding.request import Request

if TYPE_CHECKING:
    from autogaze.model import AutoGaze


class FrameGraph:
    """What is on the device for one frame after another.

    Args:
        model, engine, request: of the stream; the request is one frame's and never changes.
        frame: (B, 3, H, W), the form that all frames will have.
        memory: the encoder's, of the frames so far; from now on kept here.
    """

    def __init__(
        self, model: AutoGaze, engine: FusedDecoding, request: Request, frame: Tensor, memory: tuple[Tensor, ...]
    ) -> None:
        self.model, self.engine = model, engine
        self.frame = torch.zeros_like(frame[:, None], dtype=model.connector.pos_embed.dtype, device=model.device)
        self.memory = tuple(held.clone() for held in memory)
        self.autocast = torch.is_autocast_enabled(model.device.type)
        engine.ask(request)
        self.steps = engine.steps(request)
        self.out: Column | None = None
        self.replay = record(self._enqueue)

    def takes(self, frame: Tensor) -> bool:
        """Whether a frame has the recorded form."""
        return (
            frame.shape == self.frame[:, 0].shape and torch.is_autocast_enabled(self.model.device.type) == self.autocast
        )

    def step(self, frame: Tensor) -> Column:
        """Ids (B, 1, K), chosen and predicted losses of the next frame (B, 3, H, W)."""
        self.engine.rebase()
        self.frame.copy_(frame[:, None])
        self.replay()
        self.engine.seen += 1
        assert self.out is not None
        ids, chosen, loss = (part.clone() for part in self.out)
        return ids, chosen, loss

    def remember(self, memory: tuple[Tensor, ...]) -> None:
        """Take over the encoder's memory after a frame that was not replayed."""
        for held, new in zip(self.memory, memory, strict=True):
            held.copy_(new)

    def _enqueue(self) -> None:
        tokens, memory = self.model.embed(self.frame, self.memory, self.engine.space.room(self.model, 1))
        self.remember(memory)
        self.engine.space.enqueue(tokens, self.steps)
        self.out = self.engine.space.results(1, self.engine.width)


def capture(
    model: AutoGaze, engine: object, request: Request, frame: Tensor, memory: tuple[Tensor, ...]
) -> FrameGraph | None:
    """The graph of a stream's frame; None where there is nothing to gain or it cannot be recorded."""
    if not isinstance(engine, FusedDecoding) or not can_record(engine):
        return None
    try:
        return FrameGraph(model, engine, request, frame, memory)
    except RuntimeError as error:
        warnings.warn(f"a frame of this stream is not recorded as a CUDA graph: {error}", stacklevel=3)
        return None


def can_record(engine: FusedDecoding) -> bool:
    """Whether a frame needs no decision of the host: without clusters a stop rule is looked at between steps."""
    space = engine.space
    return space.device.type == "cuda" and (space.cluster is not None or not space.plan.stops)


def record(enqueue: Callable[[], None]) -> Callable[[], None]:
    """What was enqueued, to be enqueued again by one call."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.current_stream().synchronize()
    # Weights that autocast has cast before would be recorded where they are, and be gone once autocast ends.
    with (
        torch.autocast(
            "cuda", torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda"), cache_enabled=False
        ),
        torch.cuda.graph(graph, capture_error_mode="thread_local"),
    ):
        enqueue()
    return graph.replay
