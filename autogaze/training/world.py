"""The place of this process among several, as torchrun, SLURM or `launch` say in the environment.

torchrun and `launch` set RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT; `srun` sets
SLURM_PROCID and its kin. torchrun inside of a SLURM job is torchrun. Lightning's own environments do the rest.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from datetime import timedelta

import torch
from pytorch_lightning.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from torch import distributed
from torch.multiprocessing import _prctl_pr_set_pdeathsig  # type: ignore[attr-defined]

PATIENCE = timedelta(minutes=60)  # for the first process, which calibrates and sums up while the others wait


@dataclass(frozen=True)
class World:
    """The processes that work together."""

    rank: int = 0  # of this process among all
    local_rank: int = 0  # among those of this machine
    size: int = 1
    local_size: int = 1

    @property
    def nodes(self) -> int:
        """Machines."""
        return self.size // self.local_size


def world() -> World:
    """This process and those that it works with; alone unless something started several.

    Raises:
        ValueError: if machines run different numbers of processes.
    """
    if _by_torchrun():
        names, nodes = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"), 0
    elif _by_slurm():
        names, nodes = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", ""), int(os.environ["SLURM_NNODES"])
    else:
        return World()
    rank, local_rank, size = (int(os.environ[name]) for name in names[:3])
    local_size = size // nodes if nodes else int(os.environ.get(names[3], size))
    if size % local_size or local_rank >= local_size:
        raise ValueError(f"every machine must run as many processes as the others, got {size} in all")
    return World(rank, local_rank, size, local_size)


def rank() -> int:
    """Number of this process among those that work together; 0 if it is alone."""
    return world().rank


def is_launched() -> bool:
    """Whether this process is one of several that were started to work together."""
    return _by_torchrun() or _by_slurm()


def environment() -> ClusterEnvironment:
    """Lightning's environment for these ranks."""
    if _by_torchrun():
        return TorchElasticEnvironment()
    return SLURMEnvironment(auto_requeue=False) if _by_slurm() else LightningEnvironment()


def connect() -> None:
    """Let processes that torchrun or SLURM started find each other, each on a device of its own."""
    here, cluster = world(), environment()
    if here.size == 1 or distributed.is_initialized():
        return
    _prctl_pr_set_pdeathsig(signal.SIGTERM)  # a torchrun that is killed leaves its processes behind
    os.environ |= {"MASTER_ADDR": cluster.main_address, "MASTER_PORT": str(cluster.main_port)}
    gpus = torch.cuda.device_count()
    if here.local_rank < gpus:
        torch.cuda.set_device(here.local_rank)
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    distributed.init_process_group(backend, rank=here.rank, world_size=here.size, timeout=PATIENCE)


def wait() -> None:
    """Until every process is here."""
    if distributed.is_initialized():
        distributed.all_reduce(torch.zeros(1))  # a barrier would pick a GPU by rank


def _by_torchrun() -> bool:
    return int(os.environ.get("WORLD_SIZE", 1)) > 1 and "RANK" in os.environ and "LOCAL_RANK" in os.environ


def _by_slurm() -> bool:
    return int(os.environ.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in os.environ and SLURMEnvironment.detect()
