"""Whole clips as one CUDA graph: encoder, all frames and results.

A few clips keep a GPU busy for a few milliseconds, and the host takes one of them to start the encoder's kernels and
a graph a frame. A form of clips that comes again is recorded, and costs a copy, one launch and three copies out.
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from autogaze.decoding import frame_graph
from autogaze.decoding.choice import Column
from autogaze.decoding.request import Request

if TYPE_CHECKING:
    from autogaze.decoding.fused import FusedDecoding
    from autogaze.decoding.workspace import Workspace
    from autogaze.model import AutoGaze

IMAGES = 512  # most frames of all clips: what is recorded keeps its memory
FORMS = 2  # most forms that a workspace keeps recorded


class ClipGraph:
    """What is on the device for clips of one form.

    Args:
        model, space: whose encoder and whose buffers are recorded.
        steps: the most of each frame.
        width: slots of a frame in the result.
        video: (B, T, 3, H, W), the form that all clips will have.
    """

    def __init__(self, model: AutoGaze, space: Workspace, steps: list[int], width: int, video: Tensor) -> None:
        self.space, self.steps, self.width = space, steps, width
        self.out: Column | None = None
        with torch.inference_mode(False), torch.no_grad():  # later calls may be made outside of it
            self.video = torch.zeros(video.shape, dtype=model.connector.pos_embed.dtype, device=model.device)
            self.replay = frame_graph.record(partial(self._enqueue, model))

    def _enqueue(self, model: AutoGaze) -> None:  # which is not kept: a workspace must not keep its model alive
        tokens, _ = model.embed(self.video, out=self.space.room(model, self.video.shape[1]))
        self.space.enqueue(tokens, self.steps)
        self.out = self.space.results(len(self.steps), self.width)

    def decode(self, video: Tensor) -> Column:
        """Ids (B, T, K), chosen and predicted losses; the workspace must know the request."""
        self.video.copy_(video)
        self.replay()
        assert self.out is not None
        ids, chosen, loss = (part.clone() for part in self.out)
        return ids, chosen, loss


def decode(model: AutoGaze, engine: FusedDecoding, request: Request, video: Tensor) -> Column | None:
    """The result for whole clips (B, T, 3, H, W) if their form is recorded; None if they must be decoded as usual.

    A form is recorded when it comes for the second time: the first has compiled the kernels.
    """
    space = engine.space
    if video.shape[0] * video.shape[1] > IMAGES or not space.records or not frame_graph.can_record(engine):
        return None
    # Recorded kernels read parameters where they were: a model that was moved since is another one.
    places = tuple(p.data_ptr() for part in (model.vision_model, model.connector) for p in part.parameters())
    autocast = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda")
    steps = engine.steps(request)
    form = (tuple(video.shape), tuple(steps), engine.width, autocast, places)
    if form not in space.recorded:
        space.recorded[form] = None
        while len(space.recorded) > FORMS:
            space.recorded.pop(next(iter(space.recorded)))
        return None
    graph = space.recorded[form]
    if graph is None:
        try:
            graph = space.recorded[form] = ClipGraph(model, space, steps, engine.width, video)
        except RuntimeError as error:
            warnings.warn(f"clips of this form are not recorded as a CUDA graph: {error}", stacklevel=2)
            space.records = False
            return None
    engine.ask(request)
    engine.seen += video.shape[1]
    return graph.decode(video)
