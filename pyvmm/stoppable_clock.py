"""A monotonic clock that can be stopped, for a machine that is frozen and forked.

    time.monotonic()   0 ----- 10 ........ 52 ------ 62
    the clock          0 ----- 10          10 ------ 20        stopped from 10 to 52

The event loop's clock, and all that derive from it, so stop together with the guest's own (TSC, VM clock).
"""

from __future__ import annotations

import time


class StoppableClock:
    """A clock to be called for its time, in seconds. Called from any thread; stopped and started by one."""

    def __init__(self) -> None:
        self._lost = 0.0
        self._stopped: float | None = None
        self._starts: list[tuple[float, float, float]] = []  # time.monotonic(), lost before it, where it had stopped

    def __call__(self) -> float:
        return time.monotonic() - self._lost if self._stopped is None else self._stopped

    @property
    def stopped(self) -> bool:
        return self._stopped is not None

    def stop(self) -> None:
        """Stop the clock. Harmless twice."""
        if self._stopped is None:
            self._stopped = self()

    def start(self) -> float:
        """Let the clock go on from where it stopped. Returns the seconds for which it stood still."""
        if self._stopped is None:
            return 0.0
        now = time.monotonic()
        self._starts.append((now, self._lost, self._stopped))
        lost = now - self._stopped
        passed, self._lost, self._stopped = lost - self._lost, lost, None
        return passed

    def at(self, moment: float) -> float:
        """Return the clock's time at a past moment of time.monotonic()."""
        for started, lost, stopped in self._starts:
            if moment < started:
                return min(moment - lost, stopped)
        return min(moment - self._lost, self())
