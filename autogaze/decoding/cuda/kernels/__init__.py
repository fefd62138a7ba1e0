"""Triton kernels that decode many clips side by side, without a host round trip inside a frame.

One pass over the decoder is: `open_rows` (embeddings, first norm, first q/k/v), then for every layer `attend` (split
over the frames in the window) and `close_layer` (output projection, MLP, and the next layer's q/k/v; when rows are few
`mix_rows` and `next_layer`, which spread the same work over more processors), then `read_heads` and `choose`. A pass
is a prefill (the last frame's final group and a frame's visual tokens) or a step (one group of K ids). In the last
layer only the newest row is computed: nothing else is read from it. Models that know what is wrong with the picture
(`autogaze.network.residual`) find that out by `find_errors` in a prefill, and end a frame by `look`.

Keys live in a ring of frames, (layer, clip, head, frame, token, head_dim), so a window of frames slides without a copy.
What a pass has to know about a clip stands in `state`, which the kernels keep themselves. A clip that is done with its
frame leaves every kernel at its first instruction.
"""

from __future__ import annotations

from autogaze.decoding.cuda.kernels.attention import attend
from autogaze.decoding.cuda.kernels.choice import choose, read_heads
from autogaze.decoding.cuda.kernels.layers import close_layer, mix_rows, next_layer
from autogaze.decoding.cuda.kernels.residual import find_errors, look
from autogaze.decoding.cuda.kernels.rows import open_rows
from autogaze.decoding.cuda.kernels.state import begin_frame

__all__ = [
    "attend",
    "begin_frame",
    "choose",
    "close_layer",
    "find_errors",
    "look",
    "mix_rows",
    "next_layer",
    "open_rows",
    "read_heads",
]
