"""Times that hold on a loaded machine: without the time that threads were ready to run and had no processor.

    with Lap(process.pid) as lap:
        ask()
    assert lap.seconds < 0.5

A limit in seconds of a clock fails whenever other programs take the processors. Linux counts for each thread how long
it ran and how long it waited for a processor. A lap is the clock's time less the longest such wait of the watched
threads: one that was preempted with the interpreter's lock held delays all. It is at least what the process's main
thread, the event loop, ran, so that a long turn of the loop is seen on a loaded machine too. A thread that sleeps or
is blocked does not wait for a processor: that counts in full.

Source: Linux Documentation/scheduler/sched-stats.rst, /proc/PID/schedstat.
"""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Final, Self

POLL: Final = 0.02
"""Seconds between two looks at a process that is about to end."""

Counts = dict[int, tuple[float, float]]
"""Seconds that a thread has run and has waited for a processor, by thread id."""


def counts(pid: int) -> Counts:
    """Return the counts of a process's threads; empty if there is no such process, or Linux does not count."""
    found: Counts = {}
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return found
    for thread in threads:
        try:
            ran, waited, _ = (thread / "schedstat").read_text().split()
        except (OSError, ValueError):
            continue
        found[int(thread.name)] = (int(ran) / 1e9, int(waited) / 1e9)
    return found


class Lap:
    """Measures a span of time for process `pid` (default: this one) and the calling thread."""

    def __init__(self, pid: int | None = None) -> None:
        self._pid = os.getpid() if pid is None else pid
        self.clock = 0.0
        """Seconds of the clock, all included."""
        self.seconds = 0.0

    def __enter__(self) -> Self:
        self._caller = threading.get_native_id()
        self._began = monotonic()
        self._before = self._counts()
        self._last = self._before
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.update()
        self.clock = monotonic() - self._began
        gone = (0.0, 0.0)
        waits = [now[1] - self._before.get(thread, gone)[1] for thread, now in self._last.items()]
        ran = self._last.get(self._pid, gone)[0] - self._before.get(self._pid, gone)[0]
        self.seconds = min(self.clock, max(self.clock - max(waits, default=0.0), ran))

    def update(self) -> None:
        """Read the counts. Call it now and then if the process may end within the lap: its counts end with it."""
        self._last = self._last | self._counts()

    def wait(self, process: subprocess.Popen[Any], limit: float) -> int:
        """Return the exit status of the process. Raises subprocess.TimeoutExpired after `limit` seconds."""
        until = monotonic() + limit
        while True:
            self.update()
            try:
                return process.wait(POLL)
            except subprocess.TimeoutExpired:
                if monotonic() > until:
                    raise

    def _counts(self) -> Counts:
        found = counts(self._pid)
        if self._caller not in found:
            mine = counts(os.getpid()).get(self._caller)
            if mine is not None:
                found[self._caller] = mine
        return found
