"""Several processes: they agree on gradients, weights and when to stop, and one process's failure is told by name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import distributed, nn

from autogaze.model import AutoGaze
from autogaze.pretrain.judge import Judge
from autogaze.pretrain.reconstructor.network import Reconstructor
from autogaze.rl.module import GRPOModule
from autogaze.training.callbacks import NotFiniteError
from autogaze.training.launch import launch
from autogaze.training.ranks import average_gradients
from autogaze.training.recipes import RLRecipe
from autogaze.training.trainer import fit, make_trainer
from autogaze.training.world import is_launched, rank
from tests.pretrain.test_module import Shown, make_module
from tests.rl.test_env import TINY
from tests.rl.test_module import CONFIG, HeldOut, SpotLoader, Spots


class OwnSpots(Spots):
    """Clips of its own for each rank; no clip of a batch is one of the other's."""

    def train_dataloader(self) -> SpotLoader:
        loader = SpotLoader(self.batches, self.clips)
        loader.position = 100 * self.trainer.global_rank
        loader.batches += loader.position
        return loader

    def val_dataloader(self) -> HeldOut:
        return HeldOut(2 + rank())  # shares of different size


class Waits(pl.Callback):
    """A clock that runs faster on rank 1: left to themselves the ranks would stop at different steps."""

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int
    ) -> None:
        if trainer.global_rank == 1:
            next(one for one in trainer.callbacks if type(one).__name__ == "Pace").spent_s += 100.0


def train(folder: Path, accelerator: str) -> None:
    """The work of each of two processes; leaves its weights in a file."""
    means(folder)
    torch.manual_seed(rank())  # ranks begin with different weights, which must not matter
    minutes = 0.05 if accelerator == "cpu" else 0.5  # a GPU compiles its kernels first
    recipe = RLRecipe(
        max_steps=50,
        max_minutes=minutes,
        batch_clips=2,
        group_size=4,
        score_rollouts=3,
        warmup_steps=1,
        validate_every=4,
        checkpoint_every=4,
        accelerator=accelerator,
        devices=2,
        ema_decay=0.9,
    )
    module = GRPOModule(AutoGaze(CONFIG), Judge(Reconstructor(TINY)), recipe)
    fit(module, OwnSpots(400, 2), recipe, folder / "rl", callbacks=[Waits()])
    step, loss = module.trainer.global_step, module.trainer.callback_metrics["train/reconstruction_loss"]
    plain = make_module(
        max_steps=3, validate_every=3, accumulate=2, gradient_clip=0.1, devices=2, accelerator=accelerator
    )
    fit(plain, Shown(6, scale=1.0 - 0.5 * rank()), plain.recipe, folder / "ntp")
    torch.save(
        {
            "rl": module.state_dict(),
            "ntp": plain.state_dict(),
            "step": step,
            "loss": loss,
            "device": str(module.device),
        },
        folder / f"{rank()}.pt",
    )


def means(folder: Path) -> None:
    """Gradients are averaged, a missing one counts as zero."""
    distributed.init_process_group("gloo", rank=rank(), world_size=2)
    layers = nn.ModuleList([nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)])
    layers[0](torch.ones(1, 2) * (1 + 2 * rank())).sum().backward()
    if rank() == 1:
        layers[1](torch.ones(1, 2)).sum().backward()
    average_gradients(layers.parameters())
    torch.save([layer.weight.grad for layer in layers], folder / f"gradients{rank()}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def check(folder: Path) -> list[str]:
    """Check that `train` left one model; return the devices that it was trained on."""
    for number in range(2):
        first, second = torch.load(folder / f"gradients{number}.pt")
        assert first.tolist() == [[2.0, 2.0]] and second.tolist() == [[0.5, 0.5]]
    one, other = (torch.load(folder / f"{number}.pt", "cpu", weights_only=False) for number in range(2))
    assert one["step"] == other["step"] > 2, "both stop at the same step, which is not that of the faster clock"
    for stage in ("rl", "ntp"):  # several backward passes by hand; Lightning's own, accumulated and clipped
        assert all(torch.equal(value, other[stage][name]) for name, value in one[stage].items())
        assert len(list((folder / stage / "tensorboard").glob("events*"))) == 1
    assert one["loss"] != other["loss"], "each rank has clips and samples of its own"
    state = torch.load(folder / "rl" / "last.ckpt", "cpu", weights_only=False)
    assert state["global_step"] == one["step"] and (folder / "rl" / "model.safetensors").is_file()
    return [one["device"], other["device"]]


def train_and_fail(folder: Path) -> None:
    """NaN on rank 1 alone at the end; the other must not wait for it for ever."""
    train(folder, "cpu")
    module = make_module(max_steps=20, validate_every=20, devices=2)
    fit(module, Shown(20, scale=float("nan") if rank() == 1 else 1.0), module.recipe, folder / "failed")


@pytest.mark.timeout(1200)
def test_two_processes_train_one_model_and_a_loss_that_is_no_number_on_one_ends_both(tmp_path: Path) -> None:
    with pytest.raises(NotFiniteError, match="learning_rate"):
        launch(train_and_fail, 2, tmp_path)
    assert check(tmp_path) == ["cpu", "cpu"] and not is_launched()
    assert not (tmp_path / "failed" / "last.ckpt").exists()


@pytest.mark.gpu
def test_two_gpus_train_one_model(tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    launch(train, 2, tmp_path, "gpu")
    assert check(tmp_path) == ["cuda:0", "cuda:1"]


@pytest.mark.timeout(1200)
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
def test_processes_end_with_the_command_that_started_them(tmp_path: Path) -> None:
    command = "import pathlib, sys, tests.training.sleeper as own; own.launch(own.sleep, 2, pathlib.Path(sys.argv[1]))"
    parent = subprocess.Popen(
        [sys.executable, "-c", command, str(tmp_path)], preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)
    )  # as a job behind "&"
    deadline = time.monotonic() + 300
    while len(pids := [path.read_text() for path in tmp_path.glob("[01]")]) < 2 or not all(pids):
        assert parent.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    while any(_runs(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _runs(pid: str) -> bool:
    """Whether a process is neither gone nor a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def test_several_devices_in_one_process_are_refused(tmp_path: Path) -> None:
    assert "LOCAL_RANK" not in os.environ
    with pytest.raises(ValueError, match="one process each"):
        make_trainer(make_module(devices=2).recipe, tmp_path)
