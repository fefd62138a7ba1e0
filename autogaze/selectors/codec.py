"""Codec: choose by what the encoder of the file found out about motion, without looking at a pixel.

    gaze = CodecSelector(grid)("clip.mp4", frames=[0, 5, 10], gazing_ratio=0.1)
    still = still_frames("clip.mp4")       # frames in which nothing moved: nothing to gaze at

H.264 says of every block where it comes from. A cell of the finest scale collects the length of its motion vectors over
all frames of the file, also those between the frames that are gazed at; it counts as moved far where a block was coded
anew (intra). Where a large part of the frame moved, coarse patches are taken, for at most half the budget; the rest
goes to the cells that collected most since they were last chosen. The first frame has no motion and is taken coarse
to fine.

Reading motion costs decoding, which whoever gazes at a file does anyway.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import av
import cv2
import numpy as np
import torch
from av.sidedata.sidedata import Type

from autogaze.core.gaze import Gaze
from autogaze.core.grid import PatchGrid
from autogaze.media.decoder import upright
from autogaze.selectors.fixed import coarse_order, even_order

INTRA_PX = 16.0  # what a cell counts that was coded anew all over
UNSEEN_PX = 0.25  # what a cell counts that no patch of the finest scale has shown yet
WIDE_PX = 2.0  # a coarse patch is taken where its cells collected more on average ...
LEFT_BY_WIDE = 0.3  # ... and leaves this share of what they collected
STILL_PX = 0.25  # a frame in which no cell moved as far ...
STILL_BITS = 1.0  # ... and whose blocks of 16 x 16 pixels take fewer bits each is still
HEADER_BYTES = 80  # of a frame, whatever it shows: most of what a still one takes
FILES_KEPT = 256  # whose motion is remembered


@dataclass(frozen=True, eq=False)
class Motion:
    """Motion that the encoder of a file found in each frame, in the order in which they are shown."""

    moved: np.ndarray  # (N, rows, columns) float32, pixels
    bits: np.ndarray  # (N,) float32, bits for each block of 16 x 16 pixels, headers left out
    inter: np.ndarray  # (N,) bool, whether the frame is predicted from others

    @property
    def still(self) -> np.ndarray:
        """(N,) bool: nothing moved since the frame before."""
        return self.inter & (self.moved.max((1, 2)) < STILL_PX) & (self.bits < STILL_BITS)


def read_motion(path: str | Path, rows: int, columns: int) -> Motion:
    """The motion of all frames of a file, in a raster of cells laid over the upright frame.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no video whose decoder exports motion vectors (H.264 does, H.265, VP9 and AV1 do not).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no video {path}")
    return _read(path, os.stat(path).st_mtime_ns, rows, columns)


def still_frames(path: str | Path) -> np.ndarray:
    """(N,) bool: the frames of a file in which its encoder saw nothing move since the frame before.

    The network can be spared these frames: what was chosen before still shows the scene.
    """
    return read_motion(path, 14, 14).still


@dataclass(frozen=True)
class CodecSelector:
    """Exactly the budget in every frame, from a file instead of pixels."""

    grid: PatchGrid

    def __call__(self, path: str | Path, frames: Sequence[int], gazing_ratio: float) -> Gaze:
        """Choose patches of some frames of a file.

        Args:
            path: of the file.
            frames: their numbers, ascending.
            gazing_ratio: share of a frame's patches.

        Returns:
            a gaze of one clip with as many frames, on the CPU.
        """
        rows, columns = self.grid.sides[-1]
        moved = read_motion(path, rows, columns).moved.reshape(-1, rows * columns)
        if len(frames) == 0 or min(frames) < 0 or max(frames) >= len(moved):
            raise ValueError(f"{path} has {len(moved)} frames, cannot take {list(frames)}")
        budget, start = self.grid.budget(gazing_ratio), self.grid.offsets[-1]
        ids = np.empty((len(frames), budget), np.int64)
        ids[0] = coarse_order(self.grid, 1, torch.device("cpu"))[0].numpy().argsort()[::-1][:budget]
        even = even_order(self.grid, len(frames), torch.device("cpu"))[:, start:].numpy()
        collected, unseen = np.zeros(rows * columns), np.ones(rows * columns, bool)
        unseen[ids[0][ids[0] >= start] - start] = False
        spare = np.arange(start - 1, -1, -1)  # coarser patches, once the finest scale is used up
        for t in range(1, len(frames)):
            collected += moved[frames[t - 1] + 1 : frames[t] + 1].sum(0)
            wide, first = self._wide @ collected, self._first_wide
            rough = np.argsort(-wide, kind="stable")[: budget // 2]
            rough = rough[wide[rough] > WIDE_PX]
            collected *= 1 - (1 - LEFT_BY_WIDE) * (self._wide[rough] > 0).any(0)
            fine = min(budget - len(rough), rows * columns)
            best = np.argsort(-(collected + UNSEEN_PX * unseen * even[t]), kind="stable")[:fine]
            collected[best], unseen[best] = 0.0, False
            rest = spare[~np.isin(spare, rough + first)][: budget - len(rough) - fine]
            ids[t] = np.concatenate([rough + first, best + start, rest])
        chosen = torch.ones(1, *ids.shape, dtype=torch.bool)
        return Gaze(torch.from_numpy(ids)[None], chosen, self.grid)

    @property
    def _first_wide(self) -> int:
        """First id of the scale that follows motion of large parts of the frame: the coarsest but one."""
        return self.grid.offsets[min(1, max(0, len(self.grid.scales) - 2))]

    @cached_property
    def _wide(self) -> np.ndarray:
        """(patches, cells): what averages the finest cells under each patch of that scale; none with one scale."""
        if len(self.grid.scales) == 1:
            return np.zeros((0, self.grid.patches_per_scale[-1]))
        first = self._first_wide
        count = self.grid.patches_per_scale[self.grid.offsets.index(first)]
        cover = self.grid.cover()[first : first + count].flatten(1).double()
        return (cover / cover.sum(1, keepdim=True).clamp(min=1)).numpy()


@lru_cache(maxsize=FILES_KEPT)
def _read(path: Path, _changed_ns: int, rows: int, columns: int) -> Motion:
    moved, bits, inter = [], [], []
    try:
        with av.open(str(path)) as file:
            stream = file.streams.video[0]
            if stream.codec_context.name not in ("h264", "mpeg4"):
                raise ValueError(
                    f"{path} is {stream.codec_context.name}, whose decoder exports no motion vectors; H.264 does"
                )
            stream.codec_context.options = {"flags2": "+export_mvs"}
            stream.thread_type = "AUTO"
            sizes: dict[int | None, int] = {}
            for packet in file.demux(stream):
                sizes[packet.pts] = packet.size
                for frame in packet.decode():
                    vectors = frame.side_data.get(Type.MOTION_VECTORS)
                    blocks = -(-frame.width // 16) * -(-frame.height // 16)
                    bits.append(8 * max(0, sizes.pop(frame.pts, 0) - HEADER_BYTES) / blocks)
                    inter.append(vectors is not None)
                    cells = np.zeros((rows, columns), np.float32)
                    if vectors is not None:
                        cells = _cells(vectors.to_ndarray(), frame, rows, columns)
                    moved.append(cells)
    except (av.error.FFmpegError, IndexError) as error:
        raise ValueError(f"{path} cannot be read as a video: {error}") from error
    if not moved:
        raise ValueError(f"{path} holds no frame")
    return Motion(np.stack(moved), np.array(bits, np.float32), np.array(inter))


def _cells(vectors: np.ndarray, frame: av.VideoFrame, rows: int, columns: int) -> np.ndarray:
    """(rows, columns) float32 of the upright frame: mean length of the motion of each cell's blocks, in pixels."""
    height, width = frame.height, frame.width  # as coded
    down, right = -(-height // 16), -(-width // 16)
    block = (vectors["dst_y"].clip(0, height - 1) // 16).astype(np.int64) * right
    block += vectors["dst_x"].clip(0, width - 1) // 16
    area = vectors["w"].astype(np.float32) * vectors["h"]
    right_px, down_px = (vectors[name].astype(np.float32) for name in ("motion_x", "motion_y"))
    length = np.sqrt(right_px * right_px + down_px * down_px) / vectors["motion_scale"]
    covered = np.bincount(block, area, down * right)
    mean = np.bincount(block, area * length, down * right) / np.maximum(covered, 1.0)
    mean[covered == 0] = INTRA_PX  # coded anew
    turned = np.ascontiguousarray(upright(mean.astype(np.float32).reshape(down, right, 1), frame)[..., 0])
    return cv2.resize(turned, (columns, rows), interpolation=cv2.INTER_AREA)
