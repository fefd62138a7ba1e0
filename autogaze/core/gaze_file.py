"""`gaze.npz`: the gaze of a whole video, written frame by frame in constant memory.

Arrays: `counts` (T,) patches of every frame; `ids` (N,) their ids, local to their frame, frame after frame;
`task_loss` (N,) the reconstruction loss predicted before each was taken (NaN without predictions); `times_s` (T,);
and the grid as `scales`, `patch_size` and `frame_size` (empty for a square grid).
"""

from __future__ import annotations

import io
import shutil
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from autogaze.core.gaze import Gaze
from autogaze.core.grid import PatchGrid

STREAMED = {"counts": np.int32, "ids": np.int32, "task_loss": np.float32, "times_s": np.float64}


@dataclass(frozen=True, eq=False)
class VideoGaze:
    """The gaze of a whole video."""

    grid: PatchGrid
    counts: np.ndarray  # (T,) int32
    ids: np.ndarray  # (N,) int32, frame after frame
    task_loss: np.ndarray  # (N,) float32, NaN where not predicted
    times_s: np.ndarray  # (T,) float64

    def visits(self) -> np.ndarray:
        """(patches_per_frame,) int64: in how many frames each patch was chosen."""
        total = np.zeros(self.grid.patches_per_frame, np.int64)
        for start in range(0, len(self.ids), 1 << 20):
            total += np.bincount(self.ids[start : start + (1 << 20)], minlength=len(total))
        return total

    def mask(self, frame: int) -> np.ndarray:
        """(patches_per_frame,) bool of one frame."""
        stop = int(self.counts[: frame + 1].sum())
        mask = np.zeros(self.grid.patches_per_frame, bool)
        mask[self.ids[stop - int(self.counts[frame]) : stop]] = True
        return mask

    def last_loss(self) -> np.ndarray:
        """(T,) float32: the loss predicted before the last patch of every frame; NaN for an empty frame."""
        last = self.counts.cumsum() - 1
        return np.where(self.counts > 0, self.task_loss[last] if len(self.task_loss) else np.nan, np.nan)

    def gaze(self, start: int = 0, stop: int | None = None) -> Gaze:
        """Some frames, by default all, as the result type (1, T, K)."""
        counts = self.counts[start:stop]
        first = int(self.counts[:start].sum())
        part = slice(first, first + int(counts.sum()))
        chosen = torch.from_numpy(np.arange(int(counts.max(initial=0)))[None] < counts[:, None])
        ids = torch.zeros(chosen.shape, dtype=torch.int64)
        loss = torch.zeros(chosen.shape, dtype=torch.float32)
        ids[chosen] = torch.from_numpy(self.ids[part].astype(np.int64))
        loss[chosen] = torch.from_numpy(self.task_loss[part].copy())
        return Gaze(ids[None], chosen[None], self.grid, loss[None])


def load_gaze(path: str | Path) -> VideoGaze:
    """Read `gaze.npz`.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the file is something else.
    """
    try:
        with np.load(path) as data:
            size = tuple(int(side) for side in data["frame_size"])
            grid = PatchGrid(tuple(int(s) for s in data["scales"]), int(data["patch_size"]), size or None)  # type: ignore[arg-type]
            return VideoGaze(grid, *(data[name] for name in ("counts", "ids", "task_loss", "times_s")))
    except (KeyError, zipfile.BadZipFile, ValueError) as error:
        raise ValueError(f"{path} is not a gaze.npz of this project: {error}") from error


class GazeFileWriter:
    """Appends to `gaze.npz` chunk by chunk; the arrays wait on disk until `finish`."""

    def __init__(self, grid: PatchGrid) -> None:
        self.grid = grid
        self.frames, self.patches = 0, 0
        self.per_scale = np.zeros(len(grid.scales), np.int64)
        self._parts = {name: tempfile.TemporaryFile() for name in STREAMED}  # noqa: SIM115 (closed in finish)

    def add(self, gaze: Gaze, times_s: np.ndarray) -> None:
        """Append the frames of a gaze (1, T, K)."""
        counts = gaze.counts[0].cpu()
        chosen = gaze.chosen[0].cpu()
        ids = gaze.ids[0].cpu()[chosen]
        loss = torch.full(chosen.shape, torch.nan, dtype=torch.float32)
        if gaze.task_loss is not None:
            loss = gaze.task_loss[0].float().cpu()
        self._append(counts=counts, ids=ids, task_loss=loss[chosen], times_s=times_s)
        self.frames += len(counts)
        self.patches += len(ids)
        self.per_scale += np.bincount(
            np.searchsorted(self.grid.offsets, ids.numpy(), "right") - 1, minlength=len(self.grid.scales)
        )

    def view(self) -> VideoGaze:
        """The gaze appended so far, on disk: only the parts that are touched come into memory."""
        arrays = []
        for name, part in self._parts.items():
            part.flush()
            length = part.tell() // np.dtype(STREAMED[name]).itemsize
            empty = np.empty(0, STREAMED[name])  # an empty file cannot be mapped
            arrays.append(np.memmap(part, STREAMED[name], "r", shape=(length,)) if length else empty)
        return VideoGaze(self.grid, *arrays)

    def finish(self, path: str | Path) -> None:
        """Write the file; the caller makes that atomic."""
        size = self.grid.frame_size or ()
        fixed = {
            "scales": np.array(self.grid.scales, np.int32),
            "patch_size": np.array(self.grid.patch_size, np.int32),
            "frame_size": np.array(size, np.int32),
        }
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, array in fixed.items():
                with archive.open(f"{name}.npy", "w") as file:
                    np.lib.format.write_array(file, array)
            for name, part in self._parts.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    _write_header(file, STREAMED[name], part.tell())  # type: ignore[arg-type]
                    part.seek(0)
                    shutil.copyfileobj(part, file)
        self.close()

    def close(self) -> None:
        for part in self._parts.values():
            part.close()

    def _append(self, **arrays: np.ndarray | torch.Tensor) -> None:
        for name, array in arrays.items():
            self._parts[name].write(np.ascontiguousarray(np.asarray(array), STREAMED[name]).tobytes())


def _write_header(file: io.BufferedIOBase, dtype: type[np.generic], length_bytes: int) -> None:
    kind = np.dtype(dtype)
    np.lib.format.write_array_header_1_0(
        file,
        {
            "descr": np.lib.format.dtype_to_descr(kind),
            "fortran_order": False,
            "shape": (length_bytes // kind.itemsize,),
        },
    )
