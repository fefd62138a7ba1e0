"""GazedViT in CUDA graphs: one capture for each bucket of packed rows, replayed without a host sync.

How: a gaze of (B, T, K) slots is packed into a fixed number of rows (a bucket), the rest of which is filler that no
run of attention contains. Every shape is then fixed: packing is a cumulative sum and a scatter, attention reads its
bounds from device memory, and the longest run is bounded by K. With one bucket of B * T * K rows nothing asks the
device anything. Smaller buckets save work when many slots are empty (the stop rule); choosing among them costs one
read of the count, 8 bytes, before the replay.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from autogaze.gaze import Gaze
from autogaze.vit.features import PackedFeatures
from autogaze.vit.gazed import GazedViT


@dataclass(frozen=True, eq=False)
class _Capture:
    graph: torch.cuda.CUDAGraph
    features: PackedFeatures


class GraphedViT:
    """A GazedViT for videos and gazes of one shape on one GPU, for inference.

    Args:
        gazed: in eval mode, on the GPU. It is compiled in place (see `GazedViT.compile`) if `compile` says so.
        video: (B, T, 3, H, W), an example of what will come: shape, dtype and device count.
        gaze: (B, T, K), an example; later gazes may have fewer slots, not more.
        buckets: packed rows to capture for; empty: B * T * K only, which never asks the device anything.

    Raises:
        ValueError: if there is no GPU, or the ViT is in training mode.
    """

    def __init__(
        self, gazed: GazedViT, video: Tensor, gaze: Gaze, buckets: tuple[int, ...] = (), compile: bool = True
    ) -> None:
        if not video.is_cuda:
            raise ValueError(f"CUDA graphs need a CUDA device, the video is on {video.device}; use GazedViT itself")
        if gazed.training:
            raise ValueError("CUDA graphs are for inference: call .eval() on the GazedViT first")
        if compile:
            gazed.compile()
        self.gazed = gazed
        self.buckets = tuple(sorted({min(rows, gaze.ids.numel()) for rows in buckets or (gaze.ids.numel(),)}))
        with torch.inference_mode(False):  # so that calls may come from inside inference mode and from outside
            self._video = torch.empty_like(video)
            self._gaze = Gaze(torch.zeros_like(gaze.ids), torch.zeros_like(gaze.chosen), gaze.grid)
        self._captures: dict[int, _Capture] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._load(video, gaze)
        for rows in reversed(self.buckets):  # the largest first: the others fit into its memory
            self._captures[rows] = self._capture(rows)

    @torch.no_grad()
    def __call__(self, video: Tensor, gaze: Gaze) -> PackedFeatures:
        """Encode the chosen patches.

        Returns:
            PackedFeatures of as many rows as the bucket; the next call writes over them, so clone what must stay.

        Raises:
            ValueError: if video or gaze do not have the captured shape, or more patches were chosen than the largest
                bucket holds.
        """
        self._load(video, gaze)
        rows = self.buckets[-1]
        if len(self.buckets) > 1 or rows < gaze.ids.numel():
            count = int(gaze.chosen.sum())
            if count > rows:
                raise ValueError(f"{count} patches were chosen but the largest bucket holds {rows}")
            rows = next(bucket for bucket in self.buckets if bucket >= count)
        self._captures[rows].graph.replay()
        return replace(self._captures[rows].features)

    def _load(self, video: Tensor, gaze: Gaze) -> None:
        slots = gaze.ids.shape[-1]
        fits = (
            video.shape == self._video.shape and gaze.ids.shape[:2] == video.shape[:2] and gaze.grid == self._gaze.grid
        )
        if not fits or slots > self._gaze.ids.shape[-1]:
            raise ValueError(
                f"captured for video {tuple(self._video.shape)} and gaze {tuple(self._gaze.ids.shape)} on "
                f"{self._gaze.grid}, got {tuple(video.shape)} and {tuple(gaze.ids.shape)} on {gaze.grid}"
            )
        self._video.copy_(video)
        self._gaze.ids[..., :slots].copy_(gaze.ids)
        self._gaze.chosen[..., :slots].copy_(gaze.chosen)
        self._gaze.chosen[..., slots:].zero_()

    @torch.no_grad()
    def _capture(self, rows: int) -> _Capture:
        # What is captured is the same for any gaze that fits, but the calls before it are real, and the example may
        # not fit.
        kept = self._gaze.chosen.clone()
        self._gaze.chosen.logical_and_((kept.flatten().cumsum(0) <= rows).view_as(kept))
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # compiles, fills caches, and lets cuBLAS take its workspace before the capture
            for _ in range(3):
                self.gazed.encode_gaze(self._video, self._gaze, rows)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            features = self.gazed.encode_gaze(self._video, self._gaze, rows)
        self._gaze.chosen.copy_(kept)
        return _Capture(graph, features)
