"""Start one process a device of this machine, for `devices=N`; on several machines torchrun or SLURM start them.

The processes find themselves in the environment that torchrun makes (`autogaze.training.world`), so that what they run
knows only one way. What this adds to torchrun: a mistake in one of them is one line of the command that the user
typed, stages without training run in that command alone, and no port or rendezvous has to be thought of. Lightning's
"ddp" starts the whole command again in every process, and "ddp_spawn" pickles the data module with all that it holds,
from a process that may have used CUDA. Here each builds its own model and data from recipes and files.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from autogaze.garbage import ImportsKept, end_imports
from autogaze.interrupt import GRACE_OF_PARTS_S, InterruptError, interruptible


def launch(work: Callable[..., Any], processes: int, *arguments: Any) -> None:
    """Run `work(*arguments)` in so many new processes and wait for all.

    The processes know their number from `world()`, use the CUDA device of that number where there is one, and find
    each other through MASTER_ADDR and MASTER_PORT. When one fails, or this process is interrupted, all are ended.

    Args:
        work: a function of a module, since it is pickled by name.
        processes: how many.
        arguments: small and picklable.

    Raises:
        ValueError, OSError: that one of the processes raised, or that one was killed.
        ProcessRaisedException: of any other, with its traceback.
    """
    failures = multiprocessing.get_context("spawn").SimpleQueue()
    settings = (processes, _free_port(), failures)
    before = set(multiprocessing.active_children())
    try:
        with _signals_blocked():
            context = multiprocessing.start_processes(
                _process, (ImportsKept(), settings, work, arguments), processes, join=False, start_method="spawn"
            )
        assert context is not None
        while not context.join(grace_period=3.0):
            pass
    except ProcessRaisedException as error:
        if failures.empty():
            raise
        raise failures.get() from error
    except ProcessExitedException as error:
        raise ChildProcessError(
            f"process {error.error_index} of {processes} was ended by {error.signal_name or error.exit_code} "
            "(out of memory?); what was finished is kept"
        ) from error
    finally:
        _end(set(multiprocessing.active_children()) - before)


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """New processes begin with SIGINT and SIGHUP blocked until `_process` handles them: imports print tracebacks."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(processes: Iterable[BaseProcess]) -> None:
    """End processes: kindly, then by force."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + GRACE_OF_PARTS_S + 5
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def _process(
    number: int, _: None, settings: tuple[int, int, Any], work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    end_imports()
    # torch sends SIGINT when the parent dies. It must end the process also where a shell made the command ignore it (a
    # background job), and where the process waits for others in a collective, out of Python's reach.
    try:
        with interruptible(always=True, last=True, grace_s=GRACE_OF_PARTS_S):
            if hasattr(signal, "pthread_sigmask"):
                signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGHUP))
            _work(number, settings, work, arguments)
    except InterruptError as error:
        sys.exit(error.exit_code)


def _work(number: int, settings: tuple[int, int, Any], work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    processes, port, failures = settings
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "GROUP_RANK": "0"}
    os.environ |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if Path("/sys/class/net/lo").exists():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a host name that resolves to nothing must not matter
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    with contextlib.suppress(ImportError):
        from tqdm import tqdm

        tqdm.set_lock(threading.RLock())  # its own is shared by processes, and left over where one is killed
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
