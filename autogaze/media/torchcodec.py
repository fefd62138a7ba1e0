"""Video through torchcodec (extra `video`): on a GPU frames are decoded by NVDEC and never touch the host.

The same frames as `read_chunks` gives: on a CPU equal to the last bit with BT.601, BT.709 and BT.2020, full and limited
range; and the same errors. Containers other than MP4, MOV, Matroska and WebM, of whose frames torchcodec loses track,
are left to `read_chunks`. What it is good for is the GPU; that path could not be tried where this was written, which
has none. It needs FFmpeg's libraries (4 to 8) on the system, and its CUDA wheels need NVIDIA's NPP.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from autogaze.extras import explain
from autogaze.media.clip_files import VideoError, locate, shown
from autogaze.media.decoder import Decoder
from autogaze.media.photo import is_photo
from autogaze.media.video import BYTES_AT_ONCE, FRAMES_AT_ONCE, SEEKABLE, FrameChunk, read_chunks

_NPP = ("libnppc", "libnppicc")  # that the CUDA wheels of torchcodec are linked to, in the order they need each other


class TorchcodecSource:
    """A file, decoded by torchcodec; a `FrameSource`.

    Args:
        path: a video or photo.
        device: "cpu", or "cuda" for NVDEC: chunks then hold tensors on the GPU.
        size: frames a chunk; by default 16, or fewer where 16 would need more than 128 MiB.

    Raises:
        ImportError: if torchcodec or FFmpeg's libraries are not there.
        FileNotFoundError, VideoError: as `read_chunks`, when the file is read.
    """

    def __init__(self, path: str | os.PathLike[str], device: str = "cpu", size: int | None = None) -> None:
        self.path, self.device, self.size = path, device, size
        self._decoder_class = _load()

    def chunks(self) -> Iterator[FrameChunk]:
        path = locate(self.path)
        if is_photo(path):
            yield from read_chunks(path, self.size)
            return
        with Decoder(path, 1) as check:  # says what is wrong with a file in the same words
            damaged, form = check.damaged(), check.form.split(",")[0]
        if form not in SEEKABLE:
            yield from read_chunks(path, self.size)
            return
        try:
            decoder = self._decoder_class(str(path), dimension_order="NHWC", device=self.device, seek_mode="exact")
        except (RuntimeError, ValueError) as error:
            raise VideoError(f"{shown(path)} is not a video that torchcodec can open: {_line(error)}") from error
        about = decoder.metadata
        total = int(about.num_frames or 0)
        size = self.size or max(1, min(FRAMES_AT_ONCE, BYTES_AT_ONCE // (about.width * about.height * 3)))
        origin: float | None = None
        for first in range(0, total, size):
            try:
                batch = decoder.get_frames_in_range(first, min(total, first + size))
            except (RuntimeError, ValueError, IndexError) as error:
                raise VideoError(f"{damaged} ({_line(error)})") from error
            times = batch.pts_seconds.cpu().numpy().astype(np.float64)
            origin = float(times[0]) if origin is None else origin
            frames: Any = batch.data if batch.data.is_cuda else batch.data.numpy()
            yield FrameChunk(frames, times - origin, first)
        if origin is None:
            raise VideoError(f"{shown(path)}: no frame can be decoded: a damaged file")


def _load() -> Any:
    """torchcodec's decoder, or an ImportError that says what to install."""
    try:
        _preload_npp()
        from torchcodec.decoders import VideoDecoder
    except ImportError as error:
        raise explain(error, "decoding with torchcodec") from error
    except RuntimeError as error:  # torchcodec's own, many lines long
        raise ImportError(
            "torchcodec is installed but cannot be loaded: it needs FFmpeg's shared libraries (apt-get install "
            "ffmpeg), a build for this version of PyTorch, and with a CUDA build nvidia-npp"
        ) from error
    return VideoDecoder


def _preload_npp() -> None:
    """NVIDIA's wheels put NPP where the loader does not look; PyTorch loads its own such libraries, but not this."""
    found = importlib.util.find_spec("nvidia")
    for name in _NPP:
        for root in (found.submodule_search_locations or []) if found else []:
            for library in sorted(glob.glob(str(Path(root) / "*" / "lib" / f"{name}.so.*"))):
                with contextlib.suppress(OSError):  # of another version of CUDA
                    ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[-160:]
