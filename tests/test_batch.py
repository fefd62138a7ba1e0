"""`GazeFiles` in an engine: rows of good files, a reason for bad ones, and an actor that dies costs nothing."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from autogaze.batch import GazeFiles
from autogaze.media.scenes import render_scene
from autogaze.media.writer import write_video
from autogaze.model import AutoGaze

pq = pytest.importorskip("pyarrow.parquet", reason="needs autogaze[train]")
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for k in range(6):
        write_video(folder / f"{k}.mp4", render_scene(k, 4, (32, 48), "object"), 10)
    (folder / "bad.mp4").write_bytes(np.random.default_rng(0).bytes(3000))
    return folder


def test_a_batch_gives_a_row_a_frame_and_one_for_a_bad_file(videos: Path, tiny_checkpoint: Path) -> None:
    gaze_files = GazeFiles(str(tiny_checkpoint), device="cpu")
    table = gaze_files({"path": np.array([str(videos / "0.mp4"), str(videos / "bad.mp4"), str(videos / "gone.mp4")])})
    assert len(table) == 6 and table["error"].null_count == 4
    bad = table.to_pylist()[4:]
    assert "bad.mp4" in bad[0]["error"] and bad[0]["frame"] is None and "gone.mp4" in bad[1]["error"]
    alone = AutoGaze.from_pretrained(tiny_checkpoint).gaze(videos / "0.mp4")
    assert table["ids"][3].as_py() == alone.ids[0, 3][alone.chosen[0, 3]].tolist()
    assert gaze_files({"path": []}).schema == table.schema


KILLED = """
import os, sys, pathlib
import ray
from autogaze.batch import GazeFiles

class Dies(GazeFiles):
    def __call__(self, batch):
        mark = pathlib.Path(sys_argv_mark)
        if any(str(path).endswith("3.mp4") for path in batch["path"]) and not mark.exists():
            mark.touch()
            os._exit(1)
        return super().__call__(batch)

sys_argv_mark = sys.argv[2]
folder = pathlib.Path(sys.argv[1])
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
items = [{"path": str(path)} for path in sorted(folder.glob("*.mp4"))]
data = ray.data.from_items(items).map_batches(
    Dies, fn_constructor_args=(sys.argv[3], 0.1), concurrency=2, batch_size=1
)
rows = data.take_all()
assert pathlib.Path(sys.argv[2]).exists(), "no actor was killed"
assert len({row["file"] for row in rows if row["error"] is None}) == 6 and len(rows) == 25, len(rows)
assert [row["file"].endswith("bad.mp4") for row in rows if row["error"]] == [True]
"""


def in_python(words: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs autogaze[ray]")
def test_a_killed_actor_is_replaced_and_its_files_are_done(videos: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    in_python(["-c", KILLED, str(videos), str(tmp_path / "mark"), str(tiny_checkpoint)])


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs autogaze[ray]")
def test_the_example_runs_on_two_actors(videos: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    words = [str(ROOT / "examples" / "ray_archive.py"), str(videos), str(tmp_path / "out"), "--at-once", "2"]
    done = in_python([*words, "--checkpoint", str(tiny_checkpoint)])
    assert "7 videos, 24 frames, 1 files that cannot be read" in done.stdout and "bad.mp4" in done.stdout
    assert len(pq.read_table(tmp_path / "out")) == 25
