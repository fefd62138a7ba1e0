"""`autogaze demo`: a page to try the gaze on. Needs the extra `autogaze[demo]` (Gradio).

It listens on the loopback address unless told otherwise, limits the size and the length of what it takes, keeps
uploads in a folder of its own that is gone when it ends, and asks nothing of the network.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autogaze.checkpoint import DEFAULT_CHECKPOINT
from autogaze.core.gaze import Gaze
from autogaze.core.overlay import SCALE_COLOURS, Overlay
from autogaze.decoding.stream import GazeStream
from autogaze.device import pick_device
from autogaze.extras import explain
from autogaze.gaze_video import GazeOptions, gaze_chunks
from autogaze.media.scenes import Kind, render_scene
from autogaze.media.video import FrameChunk, VideoError, VideoInfo, probe, read_chunks, write_video
from autogaze.model import AutoGaze, AutoGazeConfig
from autogaze.report.break_even import PARTS_FILE, will_it_pay

SAVINGS = (("ViT-L/16", 384), ("SO400M/14", 378))  # ViTs, with pixels, to say what gazing saves in front of
EXAMPLES: tuple[Kind, ...] = ("object", "pan", "handheld", "cut")
FRAMES_AT_ONCE = 8  # shown after each
USERS_AT_ONCE = 4
KEEP_S = 1800  # seconds that uploads stay at most


@dataclass(frozen=True)
class DemoLimits:
    """Limits on the videos that a visitor may send."""

    megabytes: int = 200
    seconds: float = 60.0
    pixels: int = 3840 * 2160

    def check(self, info: VideoInfo) -> None:
        """Refuse what is too long or too large.

        Raises:
            VideoError: saying what the limit is.
        """
        if info.seconds is not None and info.seconds > self.seconds:
            raise VideoError(f"the video is {info.seconds:.0f} s long; this demo takes at most {self.seconds:g} s")
        if info.width * info.height > self.pixels:
            raise VideoError(f"the video is {info.width} x {info.height}; this demo takes at most {self.pixels} pixels")


@dataclass
class Tally:
    """Running count of what was looked at, and of its cost."""

    patches_per_frame: int
    frames: int = 0
    patches: int = 0
    gaze_s: float = 0.0

    def add(self, gaze: Gaze, seconds: float) -> None:
        self.frames += gaze.ids.shape[1]
        self.patches += int(gaze.counts.sum())
        self.gaze_s += seconds

    @property
    def ratio(self) -> float:
        return self.patches / max(1, self.frames * self.patches_per_frame)

    def words(self) -> str:
        """Markdown for the page."""
        mean = self.patches / max(1, self.frames)
        return (
            f"**{mean:.1f} of {self.patches_per_frame} patches** a frame: a ViT gets {self.ratio:.1%} of the "
            f"multi-scale tokens.  \nLooking took **{1000 * self.gaze_s / max(1, self.frames):.1f} ms a frame** "
            f"({self.frames} frames).{_saved(self.ratio)}"
        )


@dataclass
class _Webcam:
    """One visitor's camera: the stream remembers what it saw."""

    options: GazeOptions
    stream: GazeStream
    tally: Tally
    overlay: Overlay | None = None
    size: tuple[int, int] = (0, 0)


class Demo:
    """Actions behind the page's controls, without the page. One model serves every visitor, one call at a time."""

    def __init__(self, model: AutoGaze, limits: DemoLimits) -> None:
        self.model, self.limits = model, limits
        self._turn = threading.Lock()

    def watch(self, path: str | None, ratio: float, requirement: float) -> Iterator[tuple[np.ndarray, str]]:
        """Overlay and words after every few frames of an uploaded video.

        Raises:
            VideoError: if the file is no video, or is too long or too large.
        """
        if path is None:
            raise VideoError("choose a video first")
        info = probe(path)
        self.limits.check(info)
        tally, overlay = Tally(self.model.grid.patches_per_frame), None
        pairs = gaze_chunks(self.model, self._short(read_chunks(path, FRAMES_AT_ONCE)), _options(ratio, requirement))
        while True:
            with self._turn:
                begun = time.perf_counter()
                pair = next(pairs, None)
                spent_s = time.perf_counter() - begun
            if pair is None:
                return
            chunk, gaze = pair
            tally.add(gaze, spent_s)
            overlay = overlay or Overlay(gaze.grid, (info.height, info.width))
            mask = gaze.patch_mask()[0, -1].cpu().numpy()
            caption = f"{chunk.times_s[-1]:.1f} s  {mask.sum()} patches"
            yield overlay.draw(chunk.frames[-1], mask, caption), tally.words()

    def camera(
        self, frame: np.ndarray | None, ratio: float, requirement: float, state: _Webcam | None
    ) -> tuple[np.ndarray | None, str, _Webcam | None]:
        """Overlay, words and new state for the next frame of a webcam."""
        if frame is None:
            return None, "", None
        options = _options(ratio, requirement)
        if state is None or state.options != options or state.size != frame.shape[:2]:
            stream = self.model.stream(options.gazing_ratio, options.task_loss_requirement)
            state = _Webcam(options, stream, Tally(self.model.grid.patches_per_frame), size=frame.shape[:2])
        with self._turn:
            begun = time.perf_counter()
            video = self.model.preprocessor(torch.from_numpy(np.array(frame[None])).to(self.model.device))
            gaze = state.stream.step(video[:, 0])
            state.tally.add(gaze, time.perf_counter() - begun)
        state.overlay = state.overlay or Overlay(gaze.grid, state.size)
        picture = state.overlay.draw(frame, gaze.patch_mask()[0, 0].cpu().numpy(), "webcam")
        return picture, state.tally.words(), state

    def _short(self, chunks: Iterator[FrameChunk]) -> Iterator[FrameChunk]:
        """Stop a file whose container did not tell its true length."""
        for chunk in chunks:
            if chunk.times_s[-1] > self.limits.seconds + 1:
                raise VideoError(f"the video is longer than it says; this demo takes at most {self.limits.seconds:g} s")
            yield chunk


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        default=DEFAULT_CHECKPOINT,
        metavar="X",
        help=f"shipped name, folder, run or hub id (default {DEFAULT_CHECKPOINT})",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default 127.0.0.1: this machine only; 0.0.0.0: every network)",
    )
    parser.add_argument("--port", type=int, default=7860, help="port to listen on (default 7860)")
    parser.add_argument("--max-mb", type=int, default=DemoLimits.megabytes, help="largest upload in MB (default 200)")
    parser.add_argument("--max-seconds", type=float, default=DemoLimits.seconds, help="longest video (default 60)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")


def run(args: argparse.Namespace) -> int:
    port = check_address(args.host, args.port)
    model = AutoGaze.from_pretrained(args.checkpoint, pick_device(args.device))
    with tempfile.TemporaryDirectory(prefix="autogaze-demo-") as folder:
        page, theme = build(Demo(model, DemoLimits(args.max_mb, args.max_seconds)), Path(folder))
        host = f"[{args.host}]" if ":" in args.host else args.host
        print(f"autogaze: http://{host}:{port} (stop with Ctrl-C)", file=sys.stderr)
        try:
            page.launch(
                server_name=host,
                server_port=port,
                share=False,
                max_file_size=f"{args.max_mb}mb",
                allowed_paths=[folder],
                theme=theme,
                quiet=True,
                ssr_mode=False,
                footer_links=[],
            )
        except (OSError, ValueError) as error:  # gradio's way to say that the port is taken, or that no page answers
            raise ValueError(f"cannot serve http://{host}:{port}: {error}") from error
    return 0


def check_address(host: str, port: int) -> int:
    """The port to listen on; 0 becomes one that is free.

    Raises:
        ValueError: if this machine has no such address, or the port is taken or out of range.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"--port must be in 0..65535, got {port}")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as listener:
            if os.name != "nt":
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            return int(listener.getsockname()[1])
    except (OSError, UnicodeError) as error:  # the latter: a name that cannot be one
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot listen on --host {host} --port {port}: {reason}") from error


def build(demo: Demo, folder: Path) -> tuple[Any, Any]:
    """The page and its theme; uploads and examples live in `folder`.

    Raises:
        ImportError: without the extra.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):  # the page is asked for here before it is shown: directly
        os.environ.pop(name, None)
        os.environ.pop(name.lower(), None)
    try:
        import gradio as gr
    except ImportError as error:
        raise explain(error, "the demo") from error

    def watch(path: str | None, ratio: float, requirement: float) -> Iterator[tuple[np.ndarray, str]]:
        try:
            yield from demo.watch(path, ratio, requirement)
        except (VideoError, FileNotFoundError) as error:
            words = str(error).replace(str(path), Path(str(path)).name)
            raise gr.Error(words, print_exception=False) from error

    config = demo.model.config
    with gr.Blocks(title="autogaze", analytics_enabled=False, delete_cache=(KEEP_S // 3, KEEP_S)) as page:
        gr.Markdown("# autogaze\nChooses where in a video to look, before a ViT does. " + _legend(config.scales))
        with gr.Row():
            ratio = gr.Slider(
                0, 1, config.gazing_ratio, step=0.01, min_width=260, label="Gazing ratio: largest share of patches"
            )
            most = largest_requirement(config)
            loss = gr.Slider(
                0,
                most,
                min(config.task_loss_requirement or 0, most),
                step=0.001 if most < 1 else 0.01,
                min_width=260,
                label="Task loss requirement: stop at this predicted loss (0: never)",
            )
        view = gr.Image(show_label=False, interactive=False)
        words = gr.Markdown()
        with gr.Tab("Video"):
            video = gr.Video(
                label=f"At most {demo.limits.megabytes} MB and {demo.limits.seconds:g} s",
                sources=["upload"],
                height=240,
            )
            look = gr.Button("Look", variant="primary")
            gr.Examples(_examples(folder), video, label="Rendered scenes")
            look.click(watch, [video, ratio, loss], [view, words], concurrency_limit=USERS_AT_ONCE)
        with gr.Tab("Webcam"):
            camera = gr.Image(label="Camera", sources=["webcam"], streaming=True, height=240)
            state = gr.State(time_to_live=KEEP_S)
            camera.stream(
                demo.camera,
                [camera, ratio, loss, state],
                [view, words, state],
                stream_every=0.1,
                time_limit=600,
                concurrency_limit=USERS_AT_ONCE,
                show_progress="hidden",
            )
    page.queue(max_size=32)
    return page, gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])


def _options(ratio: float, requirement: float) -> GazeOptions:
    return GazeOptions(ratio, requirement if requirement > 0 else None)


def _examples(folder: Path) -> list[list[str]]:
    """Rendered scenes, in a codec that browsers play."""
    paths = []
    for seed, kind in enumerate(EXAMPLES):
        path = folder / "scenes" / f"{kind}.webm"
        write_video(path, render_scene(seed, 36, (240, 320), kind), 12)
        paths.append([str(path)])
    return paths


def largest_requirement(config: AutoGazeConfig) -> float:
    """The end of the slider: the largest loss that the model is calibrated for, else one that stops nearly at once."""
    return max((asked for asked, _ in config.calibration), default=2.0)


def _legend(scales: tuple[int, ...]) -> str:
    squares = [
        f'<span style="color:rgb{SCALE_COLOURS[k % len(SCALE_COLOURS)]}">■</span> {scale} px'
        for k, scale in enumerate(scales)
    ]
    return "Scales: " + " ".join(squares)


def _saved(ratio: float) -> str:
    """A line on what a ViT saves at this ratio, from measurements that the package ships; empty where it ships none."""
    if not PARTS_FILE.is_file() or not 0 < ratio <= 1:
        return ""
    lines = [""]
    for vit, size in SAVINGS:
        verdict = will_it_pay(vit, size, 16, 1, ratio)
        saved = verdict.dense_ms - verdict.gaze_ms - verdict.encode_ms
        what = f"**saves {saved:.1f} ms**" if saved > 0 else f"costs {-saved:.1f} ms more"
        lines.append(
            f"In front of {vit}, {size} px, 16 frames on {verdict.device}: {verdict.gaze_ms:.1f} ms looking + "
            f"{verdict.encode_ms:.1f} ms encoding instead of {verdict.dense_ms:.1f} ms {what}."
        )
    return "  \n".join(lines)
