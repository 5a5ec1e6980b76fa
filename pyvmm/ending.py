"""Told to end by a signal: as by an exception, so that what was begun is put in order on the way out."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Ended(SystemExit):
    """A signal asked us to end: unwinds everything on the way. The status is as a shell shows it."""


@contextlib.contextmanager
def ending_on_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind (and so end QEMU and give the terminal back) instead of killing outright.

    The first does: a terminal that closes brings both, and the second must not end the tidying up.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    told = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal told
        if not told:
            told = True
            raise Ended(128 + number)

    # One that is ignored (`nohup`) stays so.
    numbers = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is not signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
