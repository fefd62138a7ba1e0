"""Files a second of an archive, with one process and with two: `python -m benchmarks.archive --files 32`.

Renders short clips, gazes at all of them once with each number of processes, or with `--ray` of Ray's actors, and
prints one line of JSON. A process that starts imports and loads the model first; that is timed too, and falls away in
long archives. Ray itself is started before the clock.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from autogaze.archive import ArchiveSettings, gaze_archive, list_videos, write_parquet
from autogaze.batch import GazeFiles
from autogaze.cli.archive import pick_devices
from autogaze.device import pick_device
from autogaze.media.scenes import render_scene
from autogaze.media.writer import write_video


def with_processes(videos: list[Path], out: Path, count: int, checkpoint: str, device: str) -> int:
    """Files that so many processes did."""
    settings = ArchiveSettings(checkpoint, gazing_ratio=0.1)
    return gaze_archive(videos, out, settings, write_parquet, pick_devices(device, count)).done


def with_actors(videos: list[Path], out: Path, count: int, checkpoint: str, device: str) -> int:
    """Files that so many of Ray's actors did."""
    import pyarrow.parquet as pq
    import ray

    rows = ray.data.from_items([{"path": str(video)} for video in videos]).map_batches(
        GazeFiles,
        fn_constructor_kwargs={"checkpoint": checkpoint, "gazing_ratio": 0.1},
        concurrency=count,
        num_gpus=0 if pick_device(device).type == "cpu" else 1,
        batch_size=1,
    )
    rows.write_parquet(str(out))
    return len(set(pq.read_table(out)["file"].to_pylist()))


def measure(
    files: int,
    frames: int,
    size: tuple[int, int],
    counts: list[int],
    checkpoint: str,
    device: str,
    actors: bool = False,
) -> dict:
    """Seconds and files a second for each number of processes or actors."""
    work, found = with_actors if actors else with_processes, {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for k in range(files):
            write_video(folder / "videos" / f"{k:04d}.mp4", render_scene(k, frames, size), 25)
        videos = list_videos(folder / "videos")
        for count in counts:
            begun = time.perf_counter()
            done = work(videos, folder / f"out{count}", count, checkpoint, device)
            seconds = time.perf_counter() - begun
            assert done == files
            found[count] = {"seconds": round(seconds, 2), "files_per_s": round(files / seconds, 3)}
    facts = {"files": files, "frames": frames, "size": size, "checkpoint": checkpoint}
    return {**facts, "actors" if actors else "processes": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=32, help="how many (default 32)")
    parser.add_argument("--frames", type=int, default=48, help="of each (default 48)")
    parser.add_argument("--height", type=int, default=240, help="pixels (default 240)")
    parser.add_argument("--width", type=int, default=320, help="pixels (default 320)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="to compare (default 1 2)")
    parser.add_argument("--checkpoint", default="autogaze-base", help="shipped name, folder or hub id")
    parser.add_argument("--device", default="auto", help="cpu, cuda (default: a GPU if there is one)")
    parser.add_argument("--ray", action="store_true", help="actors of Ray instead of processes")
    args = parser.parse_args()
    if args.ray:
        import ray

        ray.init(include_dashboard=False, log_to_driver=False)
    size = (args.height, args.width)
    print(json.dumps(measure(args.files, args.frames, size, args.processes, args.checkpoint, args.device, args.ray)))


if __name__ == "__main__":
    main()
