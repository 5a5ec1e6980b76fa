"""Process control: whether this process is pyvmm's own, termination signals as exceptions, children that end with it.

Source: prctl(2), PR_SET_PDEATHSIG.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

_PR_SET_PDEATHSIG = 1
_is_own = False


def set_own() -> None:
    """Declare that this process was started for one command of pyvmm."""
    global _is_own
    _is_own = True


def is_own() -> bool:
    """Return whether this process serves one command only, so that it may be changed permanently, e.g. confined.

    False in a program that calls the command line or uses the API.
    """
    return _is_own


class Terminated(SystemExit):
    """A signal ends this process; the exception unwinds the stack. The exit status is as a shell shows it."""


@contextlib.contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into `Terminated`, so that cleanup runs (which ends QEMU and restores the terminal).

    Only the first signal raises: a terminal that closes brings both, and the second must not interrupt the cleanup.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    raised = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal raised
        if not raised:
            raised = True
            raise Terminated(128 + number)

    # A signal that is ignored (`nohup`) stays ignored.
    numbers = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is not signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def kill_with_parent(number: int = signal.SIGKILL) -> Callable[[], None]:
    """Return a `preexec_fn` by which the child gets signal `number` when this process ends, however that happens.

    Strictly the signal comes when the *thread* that forked ends: start such children from a thread that lasts.
    """
    import ctypes  # here, to save each command's start the import; a forked child must not import

    libc, parent = ctypes.CDLL(None, use_errno=True), os.getpid()

    def in_child() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # the parent has ended already
            os.kill(os.getpid(), number)

    return in_child
