"""Look at one video and write what was chosen into a folder: what `autogaze gaze` does for each of its videos.

Frames stream through once, so memory stays flat however long the video is. Files appear when the video is done or not
at all.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autogaze.core.gaze import Gaze
from autogaze.core.gaze_file import GazeFileWriter
from autogaze.core.overlay import Overlay
from autogaze.core.tiling import check_stride
from autogaze.decoding.frames import FrameGazer
from autogaze.decoding.limits import DEFAULT, Default, choose_limits
from autogaze.files import atomic_path
from autogaze.media.clip_files import ARRAYS, OVERLAY, REPORT, SUMMARY, content_hash, shown
from autogaze.media.source import prefetch
from autogaze.media.video import FrameChunk, VideoInfo, read_chunks
from autogaze.media.writer import VideoWriter, open_writer
from autogaze.model import AutoGaze, AutoGazeConfig
from autogaze.pretrain.reconstructor.network import Reconstructor
from autogaze.report.page import write_report
from autogaze.report.small_copy import Rebuild, SmallCopy, choose_shown, most_shown


@dataclass(frozen=True)
class GazeOptions:
    """Options of looking at a video."""

    gazing_ratio: float  # largest share of a frame's patches
    task_loss_requirement: float | None  # reconstruction loss at which a frame may stop; None: never
    tiles: bool = False  # look at full resolution, tile by tile, instead of at one small square
    gaze_stride: int = 1  # with tiles: look with so many times fewer pixels each way

    def __post_init__(self) -> None:
        check_stride(self.gaze_stride, self.tiles)
        if not 0 <= self.gazing_ratio <= 1:
            raise ValueError(f"gazing ratio must be in [0, 1], got {self.gazing_ratio}")

    @classmethod
    def of(
        cls,
        config: AutoGazeConfig,
        gazing_ratio: float | None | Default = DEFAULT,
        task_loss_requirement: float | None | Default = DEFAULT,
        tiles: bool = False,
        gaze_stride: int = 1,
    ) -> GazeOptions:
        """As `AutoGaze.gaze`: if only one is given the other sets no limit; if none is, both are the model's own."""
        ratio, requirement = choose_limits(config, gazing_ratio, task_loss_requirement)
        return cls(
            1.0 if ratio is None else float(ratio),  # type: ignore[arg-type]  # numbers went in
            None if requirement is None else float(requirement),  # type: ignore[arg-type]
            tiles,
            gaze_stride,
        )


@dataclass
class Seconds:
    """Seconds of each part of the work on one video; the total holds what is in none of them too."""

    decode: float = 0.0  # waiting for frames, which are decoded ahead
    gaze: float = 0.0
    write: float = 0.0  # drawing and encoding the overlay, collecting arrays
    report: float = 0.0
    total: float = 0.0


@dataclass(frozen=True)
class GazeSummary:
    """Contents of `gaze.json`."""

    video: dict[str, Any]
    model: dict[str, Any]
    grid: dict[str, Any]
    patches_per_frame: int
    frames: int
    ratio: float  # share of all patches that was chosen
    patches: int  # chosen in all
    patches_per_scale: dict[str, int]  # chosen in all, by scale in pixels
    seconds: dict[str, float]
    counts: list[int]  # chosen in every frame

    def line(self, out: Path) -> str:
        """One line for people."""
        speed = self.frames / max(self.seconds["gaze"], 1e-9)
        mean = self.patches / max(1, self.frames)
        return (
            f"{self.video['name']}: {self.frames} frames, {mean:.1f} of {self.patches_per_frame} patches a frame "
            f"({self.ratio:.1%}), gazing at {speed:.0f} frames/s -> {shown(out)}"
        )


def gaze_video(
    model: AutoGaze,
    info: VideoInfo,
    folder: Path,
    options: GazeOptions,
    checkpoint: str = "",
    rebuild: Rebuild | None = None,
    pictures: bool = True,
) -> GazeSummary:
    """Look at one video and write the files into `folder`; with `rebuild` the report shows reconstructions.

    Raises:
        VideoError: if the video turns out to be damaged on the way; nothing is left behind then.
    """
    spent, started = Seconds(), time.perf_counter()
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    progress = _Progress(info)
    try:
        with ExitStack() as files:
            folder.mkdir(parents=True, exist_ok=True)
            drawn = _Pictures(model, info, folder, rebuild, files, spent) if pictures else None
            arrays: GazeFileWriter | None = None
            timed = _timed(files.enter_context(closing(prefetch(read_chunks(info.path)))), spent)
            for chunk, gaze in gaze_chunks(model, timed, options, spent):
                if arrays is None:
                    arrays = files.enter_context(closing(GazeFileWriter(gaze.grid)))
                arrays.add(gaze, chunk.times_s)
                if drawn is not None:
                    drawn.add(chunk, gaze, arrays)
                progress.show(arrays.frames)
            assert arrays is not None  # read_chunks gives a frame or raises
            summary = _summary(info, model, options, checkpoint, arrays, spent)
            if drawn is not None:
                drawn.finish(arrays, asdict(summary))
            arrays.finish(files.enter_context(atomic_path(folder / ARRAYS)))
            spent.total = time.perf_counter() - started
            summary = replace(summary, seconds=_rounded(spent))
            text = json.dumps(asdict(summary), indent=1)
            files.enter_context(atomic_path(folder / SUMMARY)).write_text(text + "\n", encoding="utf-8")
        for name in () if pictures else (OVERLAY, REPORT):  # of an earlier call: they would show another gaze
            (folder / name).unlink(missing_ok=True)
        return summary
    except BaseException:
        for path in created:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        raise
    finally:
        progress.end()


class _Pictures:
    """Overlay and report of one video, drawn as its frames come by."""

    def __init__(
        self, model: AutoGaze, info: VideoInfo, folder: Path, rebuild: Rebuild | None, files: ExitStack, spent: Seconds
    ) -> None:
        self.model, self.info, self.rebuild, self.files, self.spent = model, info, rebuild, files, spent
        self.video: VideoWriter = files.enter_context(open_writer(folder / OVERLAY, info.fps))
        self.page = files.enter_context(atomic_path(folder / REPORT))
        self._scratch = Path(files.enter_context(tempfile.TemporaryDirectory()))
        self._overlay: Overlay | None = None
        self._copy: SmallCopy | None = None

    def add(self, chunk: FrameChunk, gaze: Gaze, arrays: GazeFileWriter) -> None:
        """The next frames, which are in `arrays` already."""
        begun = time.perf_counter()
        if self._overlay is None or self._copy is None:
            self._overlay, self._copy = Overlay(gaze.grid, (self.info.height, self.info.width)), self._start(gaze)
            self.files.enter_context(closing(self._copy))
        for picture in _draw(self._overlay, chunk, gaze):
            self.video.write(picture)
        drawn = time.perf_counter()
        self._copy.add(chunk, lambda first, stop: arrays.view().gaze(first, stop))
        self.spent.write += drawn - begun
        self.spent.report += time.perf_counter() - drawn

    def finish(self, arrays: GazeFileWriter, summary: dict[str, Any]) -> None:
        """Write the report."""
        begun = time.perf_counter()
        write_report(self.page, str(self.info.path), arrays.view(), summary, copy=self._copy)
        self.spent.report += time.perf_counter() - begun

    def _start(self, gaze: Gaze) -> SmallCopy:
        rebuild = self.rebuild if gaze.grid == self.model.grid else None
        patches, size = gaze.grid.patches_per_frame, (self.info.height, self.info.width)
        shown = choose_shown(self.info.frames or 1, patches, size, self.info.fps, 1 if rebuild is None else 2)
        return SmallCopy(self._scratch, shown, most_shown(patches), rebuild)


def find_reconstructor(checkpoint: str | Path) -> Path | None:
    """The reconstructor that a run of `autogaze train` left beside its model."""
    folder = Path(checkpoint) / "reconstructor"
    return folder if (folder / "model.safetensors").is_file() else None


def load_rebuild(folder: Path, model: AutoGaze) -> Rebuild:
    """A reconstructor as `write_report` wants it."""
    judge = Reconstructor.from_pretrained(folder, model.device)
    if judge.grid != model.grid:
        raise ValueError(f"{folder} rebuilds patches of {judge.grid}, this checkpoint chooses from {model.grid}")

    @torch.no_grad()
    def rebuild(frames: np.ndarray, gaze: Gaze) -> tuple[np.ndarray, np.ndarray]:
        result = judge(model.preprocessor(frames).to(model.device), gaze.to(model.device))
        return model.preprocessor.restore(result.frames[0]).cpu().numpy(), result.loss[0].cpu().numpy()

    return rebuild


def gaze_chunks(
    model: AutoGaze, chunks: Iterable[FrameChunk], options: GazeOptions, spent: Seconds | None = None
) -> Iterator[tuple[FrameChunk, Gaze]]:
    """The gaze of every chunk of frames, with what came before carried along; memory is that of one chunk."""
    spent = spent or Seconds()
    look = FrameGazer(model, options.gazing_ratio, options.task_loss_requirement, options.tiles, options.gaze_stride)
    for chunk in chunks:
        begun = time.perf_counter()
        gaze = look(chunk.frames).to("cpu")
        spent.gaze += time.perf_counter() - begun
        yield chunk, gaze


def _draw(overlay: Overlay, chunk: FrameChunk, gaze: Gaze) -> Iterator[np.ndarray]:
    for t, mask in enumerate(gaze.patch_mask()[0].cpu().numpy()):
        caption = (
            f"frame {chunk.first + t}  {chunk.times_s[t]:.2f} s  "
            f"{mask.sum()} of {len(mask)} patches ({mask.mean():.0%})"
        )
        yield overlay.draw(chunk.frames[t], mask, caption)


def _summary(
    info: VideoInfo,
    model: AutoGaze,
    options: GazeOptions,
    checkpoint: str,
    arrays: GazeFileWriter,
    spent: Seconds,
) -> GazeSummary:
    grid = arrays.grid
    video = {
        "name": info.name,
        "hash": content_hash(info.path),
        "width": info.width,
        "height": info.height,
        "fps": info.fps,
        "codec": info.codec,
        "frames_in_container": info.frames,
        "frames_decoded": arrays.frames,
    }
    return GazeSummary(
        video=video,
        model={"checkpoint": checkpoint, **asdict(options), "device": str(model.device)},
        grid=grid.to_dict(),
        patches_per_frame=grid.patches_per_frame,
        frames=arrays.frames,
        ratio=arrays.patches / (arrays.frames * grid.patches_per_frame),
        patches=arrays.patches,
        patches_per_scale={str(scale): int(n) for scale, n in zip(grid.scales, arrays.per_scale, strict=True)},
        seconds=_rounded(spent),
        counts=arrays.view().counts.tolist(),
    )


def _rounded(spent: Seconds) -> dict[str, float]:
    return {name: round(value, 4) for name, value in asdict(spent).items()}


def _timed(chunks: Iterator[FrameChunk], spent: Seconds) -> Iterator[FrameChunk]:
    while True:
        begun = time.perf_counter()
        chunk = next(chunks, None)
        spent.decode += time.perf_counter() - begun
        if chunk is None:
            return
        yield chunk


class _Progress:
    """One line on a terminal that says how far the video is."""

    def __init__(self, info: VideoInfo) -> None:
        self.shown = sys.stderr.isatty()
        self.name, self.of = info.name, f"/{info.frames}" if info.frames else ""

    def show(self, frames: int) -> None:
        if self.shown:
            print(f"\r{self.name}: {frames}{self.of} frames", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self.shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
