"""A test's time limit: `seconds` of the test itself, without the time that the reports of its failures take.

the test's process                                     its template
SIGALRM after `seconds`: the test fails where it is    waits `seconds` and GRACE, then kills it
"r": makes the report of a failure  ----------------->  its time stands still, for REPORT_LIMIT at most
"t": goes on  --------------------------------------->  its time goes on
"k": its guest is kept  ----------------------------->  no limit any more
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import select
import signal
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest

GRACE = 15.0
"""Seconds for a test that has passed its time limit to end and report by itself, before it is killed."""
REPORT_LIMIT = 60.0
"""Seconds for the report of a failure."""
DUMP_BEFORE = 2.0
"""Seconds before the kill at which the threads' stacks are written to the inner pytest's log."""

_REPORTING, _TESTING, _KEPT = b"r", b"t", b"k"


class TimeLimit:
    """The limit in the test's process."""

    def __init__(self, seconds: float, tell: int) -> None:
        """`tell` is the end for writing of a pipe to the template."""
        self._seconds = seconds
        self._tell = tell
        self._kill_at = 0.0
        self._log = 2

    def begin(self) -> None:
        """Let the time run. Called before pytest captures the output."""
        self._log = os.dup(2)
        signal.signal(signal.SIGALRM, self._on_alarm)
        self._run(self._seconds, self._seconds + GRACE)

    def _run(self, alarm: float, kill: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, alarm)
        self._kill_at = time.monotonic() + kill
        faulthandler.dump_traceback_later(max(0.1, kill - DUMP_BEFORE), file=self._log)

    def end(self) -> None:
        """Cancel the alarm."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        """Around the making of a failure's report."""
        alarm, _ = signal.setitimer(signal.ITIMER_REAL, 0)
        kill = self._kill_at - time.monotonic()
        faulthandler.cancel_dump_traceback_later()
        os.write(self._tell, _REPORTING)
        try:
            yield
        finally:
            os.write(self._tell, _TESTING)
            self._run(alarm, kill)

    def keep(self) -> None:
        """Say that the guest is kept."""
        os.write(self._tell, _KEPT)
        os.close(self._tell)

    def _on_alarm(self, number: int, frame: Any) -> NoReturn:
        """Fail the test where it is; a second limit kills it."""
        __tracebackhide__ = True
        pytest.fail(f"the test has not ended within {self._seconds:g} s (the marker's timeout=)")


def wait_for_end(process: int, tells: int, seconds: float) -> tuple[bool, str]:
    """In the template: wait for the end of a test's process, a pidfd, or until its guest is kept.

    Returns whether it is kept, and why it must be killed, "" if it need not.
    """
    left = seconds + GRACE
    reporting = False
    watched = [process, tells]
    while True:
        before = time.monotonic()
        ready = select.select(watched, [], [], REPORT_LIMIT if reporting else max(0.0, left))[0]
        if not reporting:
            left -= time.monotonic() - before
        if tells in ready:
            word = os.read(tells, 1)
            if word == _KEPT:
                return True, ""
            if not word:
                watched.remove(tells)
            reporting = word == _REPORTING
        elif ready:
            return False, ""
        elif reporting:
            return False, f"the report of its failure was not made within {REPORT_LIMIT:g} s"
        else:
            return False, f"it had not ended {GRACE:g} s after its limit"
