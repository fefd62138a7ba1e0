"""Encoder and decoder of whole frames as one CUDA graph: for a stream's frame, and for a few clips at once.

Few clips keep a GPU busy for a short time, and the host takes one or two milliseconds of it to start the encoder's
kernels and a graph a frame. Recorded once, they cost the host a copy, one launch and three copies out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from autogaze.decoding.choice import Slots
from autogaze.network.encoder import EncoderCache
from autogaze.network.network import GazeNetwork

if TYPE_CHECKING:
    from autogaze.decoding.cuda.workspace import Workspace

Result = TypeVar("Result")


class Recording:
    """Frames of one form, decoded by a replay.

    Args:
        model, space: whose encoder and whose buffers are recorded. The model is not kept.
        video: (B, T, 3, H, W), the form that all frames will have.
        steps: the most that each frame takes after its prefill.
        width: slots of a frame in the result.
        memory: of a stream, the encoder's, of the frames so far, from now on kept here; None: whole clips.
    """

    def __init__(
        self,
        model: GazeNetwork,
        space: Workspace,
        video: Tensor,
        steps: list[int],
        width: int,
        memory: EncoderCache | None = None,
    ) -> None:
        self.steps, self.autocast = steps, torch.is_autocast_enabled(model.device.type)
        with torch.inference_mode(False), torch.no_grad():  # later calls may be made outside of it
            self.video = torch.zeros(video.shape, dtype=model.connector.pos_embed.dtype, device=model.device)
            self.memory = None if memory is None else tuple(held.clone() for held in memory)

            def enqueue() -> Slots:
                tokens, after = model.embed(self.video, self.memory, space.buffers.room(model, video.shape[1]))
                self.remember(after)
                space.enqueue(tokens, steps)
                return space.buffers.results(len(steps), width)

            self.replay = record(enqueue)

    def takes(self, video: Tensor, steps: list[int]) -> bool:
        """Whether frames have the recorded form."""
        same = torch.is_autocast_enabled(self.video.device.type) == self.autocast
        return video.shape == self.video.shape and steps == self.steps and same

    def remember(self, memory: EncoderCache) -> None:
        """Take over the encoder's memory of the frames so far, if any is kept."""
        for held, new in zip(self.memory or (), memory, strict=self.memory is not None):
            held.copy_(new)

    def decode(self, video: Tensor) -> Slots:
        """Ids (B, T, K), chosen and predicted losses of frames (B, T, 3, H, W); the device must know the request."""
        self.video.copy_(video)
        ids, chosen, loss = (part.clone() for part in self.replay())
        return ids, chosen, loss


def record(enqueue: Callable[[], Result]) -> Callable[[], Result]:
    """One call that enqueues again what `enqueue` does, and returns what it returned."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.current_stream().synchronize()
    # Weights that autocast has cast before would be recorded where they are, and be gone once autocast ends.
    with (
        torch.autocast(
            "cuda", torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda"), cache_enabled=False
        ),
        torch.cuda.graph(graph, capture_error_mode="thread_local"),
    ):
        out = enqueue()

    def replay() -> Result:
        graph.replay()
        return out

    return replay


def record_pass(launch: Callable[[], None], carried: list[Tensor]) -> Callable[[], None]:
    """`record` of a pass: run once, so that all kernels are loaded, and what it changes of what it reads put back."""
    saved = [tensor.clone() for tensor in carried]
    launch()
    replay = record(launch)
    for tensor, before in zip(carried, saved, strict=True):
        tensor.copy_(before)
    return replay
