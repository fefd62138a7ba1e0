"""Files a second of an archive, with one process and with two: `python -m benchmarks.archive --files 32`.

Renders short clips, gazes at all of them once with each number of processes, and prints one line of JSON. A process
that starts imports and loads the model first; that is timed too, and falls away in long archives.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from autogaze.archive import ArchiveSettings, gaze_archive, list_videos, write_parquet
from autogaze.cli.archive import pick_devices
from autogaze.media.scenes import render_scene
from autogaze.media.writer import write_video


def measure(files: int, frames: int, size: tuple[int, int], counts: list[int], checkpoint: str, device: str) -> dict:
    """Seconds and files a second for each number of processes."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for k in range(files):
            write_video(folder / "videos" / f"{k:04d}.mp4", render_scene(k, frames, size), 25)
        videos = list_videos(folder / "videos")
        for count in counts:
            begun = time.perf_counter()
            settings = ArchiveSettings(checkpoint, gazing_ratio=0.1)
            result = gaze_archive(videos, folder / f"out{count}", settings, write_parquet, pick_devices(device, count))
            seconds = time.perf_counter() - begun
            assert result.done == files
            found[count] = {"seconds": round(seconds, 2), "files_per_s": round(files / seconds, 3)}
    return {"files": files, "frames": frames, "size": size, "checkpoint": checkpoint, "processes": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=32, help="how many (default 32)")
    parser.add_argument("--frames", type=int, default=48, help="of each (default 48)")
    parser.add_argument("--height", type=int, default=240, help="pixels (default 240)")
    parser.add_argument("--width", type=int, default=320, help="pixels (default 320)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="to compare (default 1 2)")
    parser.add_argument("--checkpoint", default="autogaze-base", help="shipped name, folder or hub id")
    parser.add_argument("--device", default="auto", help="cpu, cuda (default: a GPU if there is one)")
    args = parser.parse_args()
    size = (args.height, args.width)
    print(json.dumps(measure(args.files, args.frames, size, args.processes, args.checkpoint, args.device)))


if __name__ == "__main__":
    main()
