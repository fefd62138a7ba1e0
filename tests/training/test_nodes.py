"""Two machines, both on the loopback: torchrun starts them, they label and train as one."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from autogaze.cli.demo import check_address
from autogaze.media.scenes import write_scenes
from autogaze.pretrain.labels.file import read_labels
from autogaze.training.world import World, is_launched, world

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["frames=2", "validate_clips=4", "batch_clips=1", "max_minutes=null", "accelerator=cpu"]
WORDS += ["validate_every=3", "checkpoint_every=1", "labels.clips=9", "labels.batch_clips=2", "labels.mode=difference"]
WORDS += ["pretrain.on_policy=false", "pretrain.max_steps=2", "pretrain.calibration_thresholds=2", "rl.max_steps=1"]
WORDS += ["rl.group_size=2", "rl.max_gazing_ratio=0.05"]


def start_nodes(words: list[str]) -> list[subprocess.Popen[str]]:
    """The command on two nodes of one process: the second has rank 1, and is the first on its machine."""
    port = str(check_address("127.0.0.1", 0))
    launcher = ["torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1"]
    return [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                *launcher,
                "--master-port",
                port,
                "--node-rank",
                str(node),
                "-m",
                "autogaze",
                *words,
            ],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for node in range(2)
    ]


@pytest.mark.slow
@pytest.mark.timeout(2000)
@pytest.mark.skipif(sys.platform != "linux", reason="names the loopback device of Linux")
def test_two_nodes_label_and_train_as_one_and_go_on_after_one_was_killed(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", clips=8, frames=4, size=(64, 64), share_val=0.5)
    run = tmp_path / "run"
    words = ["train", "--data", str(tmp_path / "scenes"), "--out", str(run), "--json", "--resume", *WORDS]
    nodes = start_nodes([*words, "reconstructor.max_steps=5000"])  # far from done when killed
    last, deadline = run / "reconstructor" / "last.ckpt", time.monotonic() + 600
    while not last.is_file():
        assert all(node.poll() is None for node in nodes) and time.monotonic() < deadline, [n.stderr for n in nodes]
        time.sleep(0.05)
    nodes[1].send_signal(signal.SIGKILL)  # a machine that goes: torchrun ends the processes of the others
    for node in nodes:
        node.communicate(timeout=600)
    assert all(node.returncode for node in nodes)
    steps = torch.load(last, weights_only=False)["global_step"] + 3

    nodes = start_nodes([*words, f"reconstructor.max_steps={steps}"])
    said = [node.communicate(timeout=600) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    summary = json.loads(said[0][0].splitlines()[-1])
    assert [summary[stage]["steps"] for stage in ("reconstructor", "pretrain", "rl")] == [steps, 2, 1]
    assert said[1][0] == "", "the first process alone says what came of it"
    with (run / "reconstructor" / "metrics.csv").open() as file:
        validated = [int(float(row["step"])) for row in csv.DictReader(file)]
    assert validated == sorted(set(validated)) and validated[-1] == steps
    assert len(read_labels(run / "labels.parquet")) == 9 and not (run / "labels.shards").exists()
    assert summary["val"]["kept"] in ("NTP", "NTP+RL") and (run / "model" / "model.safetensors").is_file()


def test_the_environment_says_who_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_NTASKS", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    assert world() == World() and not is_launched()
    for name, value in (("PROCID", "5"), ("LOCALID", "1"), ("NTASKS", "8"), ("NNODES", "2"), ("JOB_NAME", "train")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert world() == World(5, 1, 8, 4) and world().nodes == 2 and is_launched()
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")  # a shell that somebody works in
    assert world() == World()
    for name, value in (("RANK", "3"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "4"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert world() == World(3, 1, 4, 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="as many processes"):
        world()
