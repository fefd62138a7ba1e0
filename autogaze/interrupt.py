"""Interrupted commands: SIGINT, SIGTERM and SIGHUP become an exception, so that every `finally` block still runs.

Python does so for SIGINT alone; on the others a process ends at once, and what it was writing stays half written.
A signal that the process was started to ignore (`nohup`, a job behind `&`) stays ignored. Where the main thread sits
in foreign code, which no exception reaches, the process ends `GRACE_S` after the signal all the same, without its
unfinished files. Where the interpreter swallows the exception (in a `__del__`) it is raised again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType

from autogaze.files import remove_unfinished

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
GRACE_S = 30.0  # for cleaning up
GRACE_OF_PARTS_S = 10.0  # where a process waits that started this one


class InterruptError(BaseException):
    """A signal asks this process to end. No `Exception`: code that carries on after errors must not catch it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_code(self) -> int:
        """130 after SIGINT, else 143."""
        return 130 if self.number == signal.SIGINT else 143


@dataclass(eq=False)
class Interrupts:
    """The handlers of one process while it runs a command."""

    last_words: Callable[[InterruptError], None]  # called before the process is ended by force
    grace_s: float
    caught: InterruptError | None = None  # the first signal; later ones change nothing
    done: threading.Event = field(default_factory=threading.Event)

    def install(self) -> None:
        """Handle the signals; again where a library has put a handler of its own in front."""
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._raise)

    def _raise(self, number: int, _: FrameType | None) -> None:
        if self.caught is None:
            self.caught = InterruptError(number)
            raise self.caught

    def swallowed(self, report: sys.UnraisableHookArgs) -> bool:
        """Whether the interpreter drops this very exception: then the signal comes again, a moment later."""
        if self.caught is None or report.exc_value is not self.caught:
            return False
        number, self.caught = self.caught.number, None
        threading.Timer(0.01, os.kill, (os.getpid(), number)).start()
        return True

    def watch(self, wakeups: socket.socket) -> None:
        """Wait in a thread for the first signal, which the interpreter writes down even where no handler can run."""
        with wakeups:
            while data := wakeups.recv(64):
                number = next((number for number in data if number in SIGNALS), None)
                if number is None:
                    continue
                if not self.done.wait(self.grace_s):
                    error = self.caught or InterruptError(number)
                    remove_unfinished()
                    self.last_words(error)
                    os._exit(error.exit_code)
                return


_active: Interrupts | None = None


@contextlib.contextmanager
def interruptible(
    last_words: Callable[[InterruptError], None] = lambda _: None,
    always: bool = False,
    last: bool = False,
    grace_s: float = GRACE_S,
) -> Iterator[Interrupts]:
    """Within the block signals raise `InterruptError`; outside of the main thread nothing changes.

    Args:
        last_words: says what there is to say where the process has to be ended by force.
        always: also handle signals that were ignored when the process started.
        last: the process ends after the block: once interrupted it takes no more signals, and has `grace_s` to end.
        grace_s: seconds for cleaning up.
    """
    global _active
    interrupts = Interrupts(last_words, grace_s)
    if threading.current_thread() is not threading.main_thread() or _active is not None:
        yield interrupts
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    if always:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=interrupts.watch, args=(ours,), name="signals", daemon=True).start()
    _active, hook = interrupts, sys.unraisablehook
    sys.unraisablehook = lambda report: None if interrupts.swallowed(report) else hook(report)
    interrupts.install()
    try:
        yield interrupts
    finally:
        _active, sys.unraisablehook = None, hook
        ends = last and interrupts.caught is not None
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if ends else handler)
        signal.set_wakeup_fd(wakeup)
        if not ends:
            interrupts.done.set()
            theirs.close()
        if interrupts.caught is not None:
            remove_unfinished()


def reinstall() -> None:
    """Put the handlers of the running command back in front, after a library has registered its own."""
    if _active is not None and threading.current_thread() is threading.main_thread():
        _active.install()


def _leave_to_the_parent() -> None:
    """A forked worker keeps none of this: a signal to the whole group is for the parent, which ends its workers."""
    global _active
    if _active is not None:
        _active = None
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_the_parent)
