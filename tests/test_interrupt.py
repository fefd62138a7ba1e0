"""Signals: one line, exit code 130 or 143, nothing half written, no process left behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from autogaze.interrupt import InterruptError, interruptible
from autogaze.media.scenes import write_scenes
from autogaze.media.writer import open_writer

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX"),
    pytest.mark.timeout(1200),
]
ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
PATIENCE_S = 600  # of a machine that does other things
TRAIN = ["frames=2", "validate_clips=2", "batch_clips=1", "max_minutes=null", "max_steps=100000", "accelerator=cpu"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, clips=3, frames=4, size=(96, 96), share_val=0.34)
    return folder


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


def start(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "autogaze", *words],
        cwd=ROOT,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


@pytest.mark.parametrize(
    ("place", "number", "code", "words"),
    [
        ("autogaze.gaze_video:write_report", "SIGHUP", 143, "gaze VIDEO --out OUT --gazing-ratio 0.1"),
        ("autogaze.cli.gallery:contact_sheet", "SIGINT", 130, "gallery VIDEO --out OUT --frames 2"),
        ("autogaze.cli.evaluate:evaluate", "SIGTERM", 143, "evaluate --data DATA --frames 2 --ratios 0.1 --out OUT"),
        ("autogaze.cli.calibrate:run_trials", "SIGINT", 130, "calibrate MODEL --data DATA --frames 2 --thresholds 0.5"),
        ("autogaze.export.onnx:check_file", "SIGTERM", 143, "export MODEL --onnx OUT/a.onnx"),
        ("autogaze.pretrain.labels.make:write_labels", "SIGTERM", 143, "labels"),
    ],
)
def test_a_signal_ends_every_verb_in_one_line_and_leaves_nothing_half_written(
    place: str, number: str, code: int, words: str, scenes: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    names = {"VIDEO": next(scenes.rglob("*.mp4")), "DATA": scenes, "MODEL": tiny_checkpoint, "OUT": tmp_path / "out"}
    arguments = [str(names.get(word, word)).replace("OUT", str(names["OUT"])) for word in words.split()]
    if words == "labels":
        pytest.importorskip("pytorch_lightning")
        arguments = [
            "train",
            "--data",
            str(scenes),
            "--out",
            str(names["OUT"]),
            "--stage",
            "labels",
            "frames=2",
            "clips=2",
            "judge=l1",
        ]
    before = {path: path.read_bytes() for path in tiny_checkpoint.iterdir()}
    done = subprocess.run(
        [sys.executable, "-m", "tests.interrupt_at", place, number, *arguments],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == code and last.startswith(f"autogaze: interrupted by {number}"), done.stderr
    assert "Traceback" not in done.stderr
    assert [path for path in tmp_path.rglob(".*")] == [] and not (tmp_path / "out" / "labels.parquet").exists()
    assert not (tmp_path / "out" / "gaze.json").exists() and not (tmp_path / "out" / "a.onnx").exists()
    assert before == {path: path.read_bytes() for path in tiny_checkpoint.iterdir()}


def test_gazing_from_outside(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with open_writer(tmp_path / "long.mp4", 30) as writer:
        for k in range(1500):
            writer.write(np.full((90, 160, 3), k % 200, np.uint8))
    out = tmp_path / "out"
    process = start(["gaze", str(tmp_path / "long.mp4"), "--checkpoint", str(tiny_checkpoint), "--out", str(out)])
    wait_for(lambda: out.is_dir() and list(out.glob(".*")), process)
    process.send_signal(signal.SIGTERM)
    _, words = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 143 and words.strip() == "autogaze: interrupted by SIGTERM" and not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "number"), [(1, signal.SIGTERM), (2, signal.SIGINT)])
def test_training_says_where_the_checkpoint_is_and_goes_on(
    devices: int, number: signal.Signals, scenes: Path, tmp_path: Path
) -> None:
    pytest.importorskip("pytorch_lightning")
    run = tmp_path / "my run"
    words = ["train", "--data", str(scenes), "--out", str(run), "--stage", "reconstructor", *TRAIN]
    process = start([*words, "checkpoint_every=1", f"devices={devices}"])
    last = run / "reconstructor" / "last.ckpt"
    wait_for(last.is_file, process)
    children = _children(process.pid)
    assert len(children) >= (devices if devices > 1 else 0)
    process.send_signal(number)
    _, said = process.communicate(timeout=PATIENCE_S)
    line = said.strip().splitlines()[-1]
    assert process.returncode == (130 if number == signal.SIGINT else 143) and "Traceback" not in said, said
    assert f"the last checkpoint is {last}; go on with: autogaze train" in line and line.endswith("--resume"), said
    assert "'" in line.partition("go on with")[2], "a path with a space in it is quoted"
    assert not [path for path in run.rglob(".*")]
    deadline = time.monotonic() + 60  # the one that counts semaphores ends a moment after its parent
    while any(_runs(child) for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_was_ignored_at_the_start_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            os.kill(os.getpid(), signal.SIGHUP)
            with pytest.raises(InterruptError, match="SIGTERM") as caught:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(1)
            os.kill(os.getpid(), signal.SIGTERM)  # a second one is no second exception
        assert caught.value.exit_code == 143 and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_nothing_is_left_open_after_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    lost: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always", ResourceWarning)
        monkeypatch.setattr(warnings, "showwarning", lambda message, *_, **__: lost.append(str(message)))
        with interruptible():
            pass
        deadline = time.monotonic() + 60
        while any(thread.name == "signals" for thread in threading.enumerate()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        gc.collect()
    assert not [line for line in lost if "socket" in line]


class Dropped:
    """The signal comes while the interpreter drops an object, where exceptions are swallowed."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)


def test_an_exception_that_is_swallowed_comes_again() -> None:
    with pytest.raises(InterruptError), interruptible():
        thing: Dropped | None = Dropped()
        del thing
        time.sleep(60)


def test_a_main_thread_that_no_exception_reaches_is_ended_all_the_same(tmp_path: Path) -> None:
    code = (
        "import autogaze.interrupt as own, os, pathlib, signal, sys, time\nfrom autogaze.files import atomic_path\n"
        "words = lambda error: print('last words', error)\n"
        "with own.interruptible(words, grace_s=0.3), atomic_path(sys.argv[1]):\n"
        "    while True:\n"
        "        try:\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        "            time.sleep(30)\n"
        "        except BaseException:\n"
        "            pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-u", "-c", code, str(tmp_path / "a")], cwd=ROOT, env=ENVIRONMENT, capture_output=True
    )
    assert (done.returncode, done.stdout.strip()) == (143, b"last words SIGTERM")
    assert list(tmp_path.iterdir()) == []


def _children(parent: int) -> list[int]:
    """Processes that a process started, of Linux; none elsewhere."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state = stat.read_text().rpartition(") ")[2].split()
        except OSError:
            continue
        if int(state[1]) == parent:
            found.append(int(stat.parent.name))
    return found


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False
