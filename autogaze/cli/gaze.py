"""`autogaze gaze VIDEO... --out DIR`: look at any video file and keep what was chosen.

One video leaves DIR/overlay.mp4, gaze.npz, gaze.json and report.html; several leave them in DIR/<name of the video>/.
Frames stream through, so memory stays flat however long the video is. Files appear when a video is done or not at all.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autogaze.core.gaze import Gaze
from autogaze.core.gaze_file import GazeFileWriter
from autogaze.device import pick_device
from autogaze.files import atomic_path
from autogaze.media.video import FrameChunk, VideoInfo, open_writer, probe, read_chunks
from autogaze.model import AutoGaze
from autogaze.report.overlay import Overlay
from autogaze.report.page import Rebuild, write_report
from autogaze.tiling import FrameGazer, check_stride, make_tiling

DEFAULT_CHECKPOINT = "autogaze-base"
OVERLAY, ARRAYS, SUMMARY, REPORT = "overlay.mp4", "gaze.npz", "gaze.json", "report.html"


@dataclass(frozen=True)
class GazeOptions:
    """How to look at a video."""

    gazing_ratio: float = 1.0  # largest share of a frame's patches
    task_loss_requirement: float | None = None  # reconstruction loss at which a frame may stop; None: never
    tiles: bool = False  # look at full resolution, tile by tile, instead of at one small square
    gaze_stride: int = 1  # with tiles: look with so many times fewer pixels each way

    def __post_init__(self) -> None:
        check_stride(self.gaze_stride, self.tiles)
        if not 0 <= self.gazing_ratio <= 1:
            raise ValueError(f"gazing ratio must be in [0, 1], got {self.gazing_ratio}")


@dataclass
class Seconds:
    """Where the time of one video went."""

    decode: float = 0.0
    gaze: float = 0.0
    write: float = 0.0


@dataclass(frozen=True)
class GazeSummary:
    """What `gaze.json` holds."""

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
            f"({self.ratio:.1%}), gazing at {speed:.0f} frames/s -> {out}"
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("video", nargs="+", type=Path, help="any file that OpenCV reads")
    parser.add_argument("--out", type=Path, default=Path("gaze-out"), help="folder to write to (default gaze-out)")
    parser.add_argument(
        "--checkpoint",
        default=DEFAULT_CHECKPOINT,
        metavar="X",
        help=f"shipped name, folder, run of autogaze train or hub id (default {DEFAULT_CHECKPOINT})",
    )
    parser.add_argument("--gazing-ratio", type=float, metavar="R", help="largest share of a frame's patches, 0 to 1")
    parser.add_argument(
        "--task-loss-requirement",
        type=float,
        metavar="L",
        help="reconstruction loss at which a frame may stop; if only one of the two is given the other "
        "sets no limit, if none is both are the checkpoint's",
    )
    parser.add_argument(
        "--tiles", action="store_true", help="look at full resolution in tiles (default: the whole frame in one square)"
    )
    parser.add_argument(
        "--gaze-stride",
        type=int,
        default=1,
        metavar="N",
        help="with --tiles: look with N times fewer pixels each way; there are about N * N times fewer "
        "tiles then, and patches are chosen in blocks of N x N (default 1)",
    )
    parser.add_argument(
        "--reconstructor",
        type=Path,
        metavar="DIR",
        help="show in the report what this reconstructor makes of the gaze (default: the run's own, if "
        "the checkpoint is a run)",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    parser.add_argument("--json", action="store_true", help="print the summaries as JSON on the last line of stdout")


def run(args: argparse.Namespace) -> int:
    infos = [probe(path) for path in args.video]  # every file must be readable before work begins
    check_stride(args.gaze_stride, args.tiles)
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"{args.out} exists and is not a folder")
    model = AutoGaze.from_pretrained(args.checkpoint, pick_device(args.device))
    options = choose_options(model, args.gazing_ratio, args.task_loss_requirement, args.tiles, args.gaze_stride)
    for info in infos if args.tiles else ():
        make_tiling(model.grid, (info.height, info.width), gaze_stride=args.gaze_stride)  # a stride must fit them all
    judge = args.reconstructor or find_reconstructor(args.checkpoint)
    rebuild = None if judge is None else load_rebuild(judge, model)
    summaries = []
    for info, folder in zip(infos, output_folders(args.video, args.out), strict=True):
        summary = gaze_video(model, info, folder, options, str(args.checkpoint), rebuild)
        print(summary.line(folder), file=sys.stderr)
        summaries.append(asdict(summary) | {"out": str(folder)})
    if args.json:
        print(json.dumps(summaries if len(summaries) > 1 else summaries[0]))
    return 0


def choose_options(
    model: AutoGaze,
    gazing_ratio: float | None,
    task_loss_requirement: float | None,
    tiles: bool = False,
    gaze_stride: int = 1,
) -> GazeOptions:
    """As `AutoGaze.gaze`: if only one is given the other sets no limit; if none is, both are the model's own."""
    if gazing_ratio is None and task_loss_requirement is None:
        return GazeOptions(model.config.gazing_ratio, model.config.task_loss_requirement, tiles, gaze_stride)
    return GazeOptions(1.0 if gazing_ratio is None else gazing_ratio, task_loss_requirement, tiles, gaze_stride)


def gaze_video(
    model: AutoGaze,
    info: VideoInfo,
    folder: Path,
    options: GazeOptions,
    checkpoint: str = "",
    rebuild: Rebuild | None = None,
) -> GazeSummary:
    """Look at one video and write the four files into `folder`; with `rebuild` the report shows reconstructions.

    Raises:
        VideoError: if the video turns out to be damaged on the way; nothing is left behind then.
    """
    spent, started = Seconds(), time.perf_counter()
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    overlay: Overlay | None = None
    progress = _Progress(info)
    try:
        with ExitStack() as files:
            folder.mkdir(parents=True, exist_ok=True)
            video = files.enter_context(open_writer(folder / OVERLAY, info.fps))
            arrays: GazeFileWriter | None = None
            for chunk, gaze in gaze_chunks(model, _timed(read_chunks(info.path), spent), options, spent):
                begun = time.perf_counter()
                if overlay is None or arrays is None:
                    overlay = Overlay(gaze.grid, (info.height, info.width))
                    arrays = files.enter_context(closing(GazeFileWriter(gaze.grid)))
                arrays.add(gaze, chunk.times_s)
                video.write(_draw(overlay, chunk, gaze))
                spent.write += time.perf_counter() - begun
                progress.show(arrays.frames)
            assert arrays is not None  # read_chunks gives a frame or raises
            summary = _summary(info, model, options, checkpoint, arrays, spent, time.perf_counter() - started)
            text = json.dumps(asdict(summary), indent=1)
            files.enter_context(atomic_path(folder / SUMMARY)).write_text(text + "\n", encoding="utf-8")
            write_report(
                files.enter_context(atomic_path(folder / REPORT)),
                info.path,
                arrays.view(),
                asdict(summary),
                rebuild if arrays.grid == model.grid else None,
            )
            arrays.finish(files.enter_context(atomic_path(folder / ARRAYS)))
        return summary
    except BaseException:
        for path in created:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        raise
    finally:
        progress.end()


def find_reconstructor(checkpoint: str | Path) -> Path | None:
    """The reconstructor that a run of `autogaze train` left beside its model."""
    folder = Path(checkpoint) / "reconstructor"
    return folder if (folder / "model.safetensors").is_file() else None


def load_rebuild(folder: Path, model: AutoGaze) -> Rebuild:
    """A reconstructor as `write_report` wants it."""
    from autogaze.pretrain.reconstructor.network import Reconstructor

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


def output_folders(videos: list[Path], out: Path) -> list[Path]:
    """`out` itself for one video, else a folder a video, numbered where names repeat."""
    if len(videos) == 1:
        return [out]
    names: list[str] = []
    for video in videos:
        taken = sum(name == video.stem or name.startswith(f"{video.stem}-") for name in names)
        names.append(f"{video.stem}-{taken + 1}" if video.stem in names else video.stem)
    return [out / name for name in names]


def _draw(overlay: Overlay, chunk: FrameChunk, gaze: Gaze) -> np.ndarray:
    pictures = []
    for t, mask in enumerate(gaze.patch_mask()[0].cpu().numpy()):
        caption = (
            f"frame {chunk.first + t}  {chunk.times_s[t]:.2f} s  "
            f"{mask.sum()} of {len(mask)} patches ({mask.mean():.0%})"
        )
        pictures.append(overlay.draw(chunk.frames[t], mask, caption))
    return np.stack(pictures)


def _summary(
    info: VideoInfo,
    model: AutoGaze,
    options: GazeOptions,
    checkpoint: str,
    arrays: GazeFileWriter,
    spent: Seconds,
    total_s: float,
) -> GazeSummary:
    grid = arrays.grid
    video = {
        "name": info.path.name,
        "width": info.width,
        "height": info.height,
        "fps": info.fps,
        "codec": info.codec,
        "frames_in_container": info.frames,
        "frames_decoded": arrays.frames,
    }
    if info.frames and abs(info.frames - arrays.frames) > 1:
        print(
            f"autogaze: {info.path}: decoded {arrays.frames} frames, but its container lists {info.frames}",
            file=sys.stderr,
        )
    return GazeSummary(
        video=video,
        model={"checkpoint": checkpoint, **asdict(options), "device": str(model.device)},
        grid=grid.to_dict(),
        patches_per_frame=grid.patches_per_frame,
        frames=arrays.frames,
        ratio=arrays.patches / (arrays.frames * grid.patches_per_frame),
        patches=arrays.patches,
        patches_per_scale={str(scale): int(n) for scale, n in zip(grid.scales, arrays.per_scale, strict=True)},
        seconds={name: round(value, 4) for name, value in {**asdict(spent), "total": total_s}.items()},
        counts=arrays.view().counts.tolist(),
    )


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
        self.name, self.of = info.path.name, f"/{info.frames}" if info.frames else ""

    def show(self, frames: int) -> None:
        if self.shown:
            print(f"\r{self.name}: {frames}{self.of} frames", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self.shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
