"""Gaze at all videos of a folder on a Ray cluster, and write the rows as Parquet.

    python examples/ray_archive.py VIDEOS OUT --actors 2

Needs the extra `ray`, and folders that every machine sees. Ray replaces an actor that died and hands its files to
another; a file that cannot be read is a row with the reason.
"""

import argparse
from pathlib import Path

import ray

from autogaze.archive import list_videos
from autogaze.batch import GazeFiles

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("videos", type=Path, help="folder, list of paths (.txt) or pattern")
parser.add_argument("out", type=Path, help="folder of Parquet files to write")
parser.add_argument("--checkpoint", default="autogaze-base", help="shipped name, folder or hub id")
parser.add_argument("--actors", type=int, default=2, help="workers, each with a model (default 2)")
parser.add_argument("--gpus", type=float, default=0, help="GPUs a worker; 0.5 puts two on one (default 0)")
parser.add_argument("--at-once", type=int, default=4, help="videos that a worker takes at a time (default 4)")

if __name__ == "__main__":
    args = parser.parse_args()
    videos, out = [{"path": str(path.resolve())} for path in list_videos(args.videos)], str(args.out.resolve())
    rows = ray.data.from_items(videos).map_batches(
        GazeFiles,
        fn_constructor_kwargs={"checkpoint": args.checkpoint, "gazing_ratio": 0.1},
        concurrency=args.actors,
        num_gpus=args.gpus or None,
        batch_size=args.at_once,
    )
    rows.write_parquet(out)
    written = ray.data.read_parquet(out)
    bad = written.filter(lambda row: row["error"] is not None).take_all()
    print(f"{len(videos)} videos, {written.count() - len(bad)} frames, {len(bad)} files that cannot be read")
    print(*(f"  {row['file']}: {row['error']}" for row in bad), sep="\n")
