"""GazedViT in CUDA graphs: one capture for each bucket of packed rows, replayed without a host sync.

How: a gaze of (B, T, K) slots is packed into a fixed number of rows (a bucket), the rest of which is filler that no
run of attention contains. Every shape is then fixed: packing is a cumulative sum and a scatter, attention reads its
bounds from device memory, and the longest run is bounded by K. With one bucket of B * T * K rows nothing asks the
device anything. Smaller buckets save work when slots are empty (the stop rule, tiles); choosing among them costs one
read of the count, 8 bytes, before the replay: the call then waits until the gaze is there.

Where every slot is chosen, long runs of attention have a faster kernel (`Layout.regular`). That form has a capture of
its own, replayed when the count is B * T * K and never else.

Results lie where the next call writes, so one thread makes all calls of a `GraphedViT`; another is refused.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from autogaze.core.gaze import Gaze
from autogaze.vit.attention import LONG_RUN
from autogaze.vit.features import PackedFeatures
from autogaze.vit.gazed import GazedViT
from autogaze.vit.packing import longest_run

HEADROOM = 1.01  # rows of the bucket that fits the example, for each of its chosen patches
ROWS_STEP = 128  # buckets are multiples of it: matrix products work on so many rows at once, fewer are not faster


def default_buckets(count: int, slots: int) -> tuple[int, ...]:
    """Buckets that fit an example, and everything; the second alone if the first would be as large.

    With 12,336 of 13,312 slots chosen: 12,544 and 13,312 rows.

    Args:
        count: chosen patches of the example.
        slots: B * T * K.
    """
    fitting = max(1, math.ceil(count * HEADROOM / ROWS_STEP)) * ROWS_STEP
    return (fitting, slots) if fitting < slots else (slots,)


class Form(NamedTuple):
    """Sizes that one capture is made for."""

    rows: int  # packed rows
    whole: bool = False  # every slot is chosen; otherwise any gaze that fits


@dataclass(frozen=True, eq=False)
class _Capture:
    graph: torch.cuda.CUDAGraph
    features: PackedFeatures


class GraphedViT:
    """A GazedViT for videos and gazes of one shape on one GPU, for inference.

    Args:
        gazed: in eval mode, on the GPU. It is compiled in place (see `GazedViT.compile`) if `compile` says so.
        video: (B, T, 3, H, W), an example of what will come: shape, dtype and device count.
        gaze: (B, T, K), an example; later gazes may have fewer slots, not more, and choose any number of them.
        buckets: packed rows to capture for; empty: `default_buckets` of the example. With B * T * K alone a call never
            asks the device anything, and has no form for a gaze with every slot chosen.

    Raises:
        ValueError: if there is no GPU, or the ViT is in training mode.
    """

    _caller: threading.Thread | None = None  # who makes the calls

    def __init__(
        self, gazed: GazedViT, video: Tensor, gaze: Gaze, buckets: tuple[int, ...] = (), compile: bool = True
    ) -> None:
        _check_capturable(gazed, video)
        if compile:
            gazed.compile()
        self.gazed = gazed
        slots = gaze.ids.numel()
        asked = buckets or default_buckets(int(gaze.chosen.sum()), slots)
        self.buckets = tuple(sorted({min(rows, slots) for rows in asked}))
        asks = not buckets or len(self.buckets) > 1
        self.whole = asks and self.buckets[-1] == slots and _whole_pays(gazed, gaze)
        with torch.inference_mode(False):  # so that calls may come from inside inference mode and from outside
            self._video = torch.empty_like(video)
            self._gaze = Gaze(torch.zeros_like(gaze.ids), torch.zeros_like(gaze.chosen), gaze.grid)
        self._captures: dict[Form, _Capture] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._check(video, gaze)
        self._load(video, gaze)
        forms = {Form(rows) for rows in self.buckets} | ({Form(slots, whole=True)} if self.whole else set())
        for form in sorted(forms, reverse=True):  # the largest first: the others fit into its memory
            self._captures[form] = self._capture(form)

    @torch.no_grad()
    def __call__(self, video: Tensor, gaze: Gaze) -> PackedFeatures:
        """Encode the chosen patches.

        Returns:
            PackedFeatures of as many rows as the bucket; the next call writes over them, so clone what must stay.

        Raises:
            ValueError: if video or gaze do not have the captured shape, or more patches were chosen than the largest
                bucket holds.
            RuntimeError: if another thread that is still there has called before.
        """
        self._check_caller()
        self._check(video, gaze)
        capture = self._captures[self.form(gaze)]  # before the copies: they run while the host starts the replay
        self._load(video, gaze)
        capture.graph.replay()
        return replace(capture.features)

    def form(self, gaze: Gaze) -> Form:
        """The form that serves a gaze: the smallest bucket that holds it, or the form of a gaze with every slot chosen.

        Raises:
            ValueError: if more patches were chosen than the largest bucket holds.
        """
        rows = self.buckets[-1]
        if len(self.buckets) == 1 and rows >= gaze.ids.numel() and not self.whole:
            return Form(rows)
        count = int(gaze.chosen.sum())
        if count > rows:
            raise ValueError(f"{count} patches were chosen but the largest bucket holds {rows}")
        if self.whole and count == self._gaze.ids.numel():
            return Form(count, whole=True)
        return Form(next(bucket for bucket in self.buckets if bucket >= count))

    def _check_caller(self) -> None:
        thread = threading.current_thread()
        if self._caller is not None and self._caller is not thread and self._caller.is_alive():
            raise RuntimeError(
                f"this GraphedViT is called by thread {self._caller.name!r}, whose results a call of {thread.name!r} "
                "would write over: make one for each thread"
            )
        self._caller = thread

    def _check(self, video: Tensor, gaze: Gaze) -> None:
        fits = (
            video.shape == self._video.shape and gaze.ids.shape[:2] == video.shape[:2] and gaze.grid == self._gaze.grid
        )
        if not fits or gaze.ids.shape[-1] > self._gaze.ids.shape[-1]:
            raise ValueError(
                f"captured for video {tuple(self._video.shape)} and gaze {tuple(self._gaze.ids.shape)} on "
                f"{self._gaze.grid}, got {tuple(video.shape)} and {tuple(gaze.ids.shape)} on {gaze.grid}"
            )

    def _load(self, video: Tensor, gaze: Gaze) -> None:
        slots = gaze.ids.shape[-1]
        self._video.copy_(video)
        self._gaze.ids[..., :slots].copy_(gaze.ids)
        self._gaze.chosen[..., :slots].copy_(gaze.chosen)
        self._gaze.chosen[..., slots:].zero_()

    @torch.no_grad()
    def _capture(self, form: Form) -> _Capture:
        # What is captured is the same for any gaze that fits, but the calls before it are real, and the example may
        # not fit.
        kept = self._gaze.chosen.clone()
        self._gaze.chosen.logical_and_((kept.flatten().cumsum(0) <= form.rows).view_as(kept))
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # compiles, fills caches, and lets cuBLAS take its workspace before the capture
            for _ in range(3):
                self.gazed.encode_gaze(self._video, self._gaze, *form)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            features = self.gazed.encode_gaze(self._video, self._gaze, *form)
        self._gaze.chosen.copy_(kept)
        return _Capture(graph, features)


def _check_capturable(gazed: GazedViT, video: Tensor) -> None:
    if not video.is_cuda:
        raise ValueError(f"CUDA graphs need a CUDA device, the video is on {video.device}; use GazedViT itself")
    if gazed.training:
        raise ValueError("CUDA graphs are for inference: call .eval() on the GazedViT first")


def _whole_pays(gazed: GazedViT, example: Gaze) -> bool:
    """Whether gazes like the example have every slot chosen, and a faster form for that."""
    shape = (example.ids.shape[0], example.ids.shape[1], example.ids.shape[2])
    long = longest_run(gazed.attention, shape, gazed.tower.prefix_tokens) >= LONG_RUN
    return long and gazed.attention != "block_causal" and bool(example.chosen.all())
