"""Start one process a device. Each builds its own model and data from recipes and files: nothing large is handed over.

Lightning's own ways do not fit a command that runs several stages: "ddp" starts the whole command again in every
process, and "ddp_spawn" pickles the data module with all that it holds, from a process that may have used CUDA.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing
from torch.multiprocessing.spawn import ProcessRaisedException

LOCAL_RANK = "LOCAL_RANK"  # Lightning reads it, and takes a process that has it for one that was started for it


def launch(work: Callable[..., Any], processes: int, *arguments: Any) -> None:
    """Run `work(*arguments)` in so many new processes and wait for all.

    The processes know their number from `rank()`, use the CUDA device of that number where there is one, and find
    each other through MASTER_ADDR and MASTER_PORT. When one fails, the others are ended.

    Args:
        work: a function of a module, since it is pickled by name.
        processes: how many.
        arguments: small and picklable.

    Raises:
        ValueError, OSError: that one of the processes raised.
        ProcessRaisedException: of any other, with its traceback.
    """
    failures = multiprocessing.get_context("spawn").SimpleQueue()
    settings = (processes, _free_port(), failures)
    try:
        multiprocessing.start_processes(_process, (settings, work, arguments), processes, start_method="spawn")
    except ProcessRaisedException as error:
        if failures.empty():
            raise
        raise failures.get() from error


def rank() -> int:
    """Number of this process among those that `launch` started; 0 in any other."""
    return int(os.environ.get(LOCAL_RANK, 0))


def is_launched() -> bool:
    """Whether `launch` started this process."""
    return LOCAL_RANK in os.environ


def _process(number: int, settings: tuple[int, int, Any], work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    # torch sends this when the parent dies. It must end the process also where a shell made the command ignore it
    # (a background job) and where the process waits for others in a collective, out of Python's reach.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    processes, port, failures = settings
    os.environ |= {LOCAL_RANK: str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if Path("/sys/class/net/lo").exists():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a host name that resolves to nothing must not matter
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    if number < torch.cuda.device_count():
        torch.cuda.set_device(number)  # "cuda" means this one from here on
    try:
        work(*arguments)
    except (ValueError, OSError) as error:
        failures.put(error)
        raise
    if torch.distributed.is_initialized():  # not after a failure: the others may wait in a collective
        torch.distributed.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
