"""Archives: thousands of files, whatever happens on the way; one result each, bad ones named."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from autogaze.archive import is_archive, list_videos
from autogaze.cli.main import main
from autogaze.media.scenes import render_scene
from autogaze.media.writer import write_video
from autogaze.model import AutoGaze
from benchmarks.archive import measure

pq = pytest.importorskip("pyarrow.parquet", reason="needs autogaze[train]")
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Five videos in two folders, two of one name, and one that is none."""
    folder = tmp_path / "videos"
    for k, name in enumerate(("a/one.mp4", "a/two.mp4", "b/one.mp4", "b/three.mp4", "four.mp4")):
        write_video(folder / name, render_scene(k, 3 + k, (32, 48), "object"), 10)
    (folder / "a" / "bad.mp4").write_bytes(np.random.default_rng(0).bytes(3000))
    (folder / "notes.md").write_text("no video")
    return folder


def gaze(words: list[str], checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> dict:
    assert main(["gaze", *words, "--checkpoint", str(checkpoint), "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_folder_becomes_one_dataset_and_bad_files_are_named(
    videos: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    facts = gaze([str(videos), "--out", str(out), "--format", "parquet"], tiny_checkpoint, capsys)
    assert (facts["files"], facts["done"], facts["there"]) == (6, 5, 0)
    ((bad, reason),) = facts["skipped"]
    assert bad.endswith("a/bad.mp4") and "bad.mp4" in reason
    assert "bad.mp4" in (out / "_skipped.csv").read_text()
    table = pq.read_table(out).to_pandas().sort_values(["file", "frame"])
    assert list(table.columns) == ["file", "frame", "time_s", "ids", "scales", "predicted_loss"]
    assert sorted(table.groupby("file").size()) == [3, 4, 5, 6, 7]
    model, video = AutoGaze.from_pretrained(tiny_checkpoint), videos / "b" / "one.mp4"
    alone = model.gaze(video, gazing_ratio=0.1)
    mine = table[table.file == str(video)]
    for t, (_, row) in enumerate(mine.iterrows()):
        assert (row.ids == alone.ids[0, t][alone.chosen[0, t]].numpy()).all() and row.frame == t
        assert row.time_s == pytest.approx(t / 10, abs=0.01) and np.isfinite(row.predicted_loss)
        assert set(row.scales) <= set(model.grid.scales) and len(row.scales) == len(row.ids) == 26


def test_what_is_done_is_not_done_again_and_what_changed_is(
    videos: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(videos / "*" / "*.mp4"), "--out", str(tmp_path / "out"), "--format", "parquet"]
    assert gaze(words, tiny_checkpoint, capsys)["done"] == 4
    write_video(videos / "a" / "bad.mp4", render_scene(9, 3, (32, 48)), 10)  # put right
    write_video(videos / "a" / "two.mp4", render_scene(8, 9, (32, 48)), 10)  # another one of that name
    again = gaze(words, tiny_checkpoint, capsys)
    assert (again["done"], again["there"], again["skipped"]) == (2, 3, [])
    assert main(["gaze", *words, "--checkpoint", str(tiny_checkpoint), "--gazing-ratio", "0.3"]) == 2
    assert "another gazing_ratio (0.1, asked for 0.3): give another --out" in capsys.readouterr().err


def test_a_list_gives_a_folder_a_video_even_where_names_repeat(
    videos: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (videos / "list.txt").write_text("# mine\na/one.mp4\n\nb/one.mp4\nb/gone.mp4\n")
    out = tmp_path / "out"
    words = [str(videos / "list.txt"), "--out", str(out), "--no-overlay"]
    facts = gaze(words, tiny_checkpoint, capsys)
    assert facts["done"] == 2 and "gone.mp4" in facts["skipped"][0][0]
    assert (gaze(words, tiny_checkpoint, capsys)["done"], gaze(words, tiny_checkpoint, capsys)["there"]) == (0, 2)
    assert sorted(path.parent.relative_to(out).as_posix() for path in out.rglob("gaze.json")) == [
        "one",
        "one-2",
    ]


def test_mistakes_are_one_line(
    videos: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear")
    (tmp_path / "bad.txt").write_text("videos/a/bad.mp4")
    for words, said in (
        ([str(tmp_path / "empty")], "without a readable video"),
        ([str(tmp_path / "no*.mp4")], "names no readable video"),
        ([str(tmp_path / "no.txt")], "No such file"),
        ([str(videos), "--format", "parquet", "--out", str(tmp_path / "mine")], "is no archive"),
        ([str(tmp_path / "bad.txt")], "none of 1 videos can be read"),
        ([str(videos), "--devices", "0"], "--devices must be positive"),
    ):
        out = [] if "--out" in words else ["--out", str(tmp_path / f"out{len(said)}")]
        assert main(["gaze", *words, *out, "--checkpoint", str(tiny_checkpoint)]) == 2
        (*_, line) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("autogaze: ") and said in line


def test_one_file_is_a_list_too(videos: Path) -> None:
    assert list_videos(videos / "b") == [videos / "b" / "one.mp4", videos / "b" / "three.mp4"]
    assert list_videos(videos / "b" / "t*.mp4") == [videos / "b" / "three.mp4"]
    (videos / "b" / "one.mp4").rename(videos / "one.txt")  # what a file is its content says
    assert not is_archive([videos / "one.txt"])


def test_the_benchmark_counts_files(tiny_checkpoint: Path) -> None:
    found = measure(2, 3, (32, 48), [1], str(tiny_checkpoint), "cpu")["processes"][1]
    assert found["files_per_s"] > 0 and found["seconds"] > 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_processes_share_the_work_and_an_interrupted_one_goes_on(
    videos: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_video(videos / "a" / "0.mp4", render_scene(0, 600, (32, 48), "pan"), 10)  # keeps one process busy for long
    for k in range(19):
        write_video(videos / "more" / f"{k}.mp4", render_scene(k, 40, (32, 48), "pan"), 10)
    out = tmp_path / "out"
    words = [str(videos), "--out", str(out), "--format", "parquet", "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-m", "autogaze", "gaze", *words, "--devices", "2", "--checkpoint", str(tiny_checkpoint)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 600
    while not list(out.glob("[0-9a-f]*.parquet")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 143 and "go on with the same command" in said.splitlines()[-1], said
    assert not list(out.glob(".*")), "nothing half written"
    before = len(list(out.glob("[0-9a-f]*.parquet")))
    facts = gaze(words, tiny_checkpoint, capsys)  # with another number of processes
    assert 1 <= before < 25 and (facts["there"], facts["done"]) == (before, 25 - before)
    assert len(set(pq.read_table(out)["file"].to_pylist())) == 25
