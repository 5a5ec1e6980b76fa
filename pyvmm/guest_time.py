"""Guest time: a clock and timers that stand still while the guest cannot run.

A timeout for the guest (of a balloon request, a heartbeat, a command) must not count the time in which its vCPUs were
stopped. So VMBus, its devices and the agent use this clock and not the loop's. The clock stands still

    before the first vCPU runs        `frozen` at the start, until `thaw`
    while the machine is paused       `freeze`, `thaw`
    while its output is blocked       the same, with a reason of its own
    while this process was stopped    detected: the loop's clock was not read for longer than STALL

A suspended host needs no handling: time.monotonic() stops meanwhile (Linux CLOCK_MONOTONIC).

    loop clock    0 ----- 10 ........ 52 ------ 62
    guest time    0 ----- 10          10 ------ 20        paused from 10 to 52: `_lost` is 42 from then on
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from pyvmm.loop import Timer, Timers

LOOK_PERIOD = 0.5
"""Seconds between two reads of the loop's clock, so that a longer gap means a stop."""
STALL = 3.0
"""Seconds without a read after which this process, and with it the guest, counts as having been stopped. If the loop
was merely busy for so long, the guest gets that much more time, which does no harm."""
PAUSED = "paused"
"""The default reason of `freeze` and `thaw`: paused by a command, or not started yet."""
_SHORTEST_WAIT = 1e-4
"""Seconds until a timer is checked again that is not due yet by a rounding error."""


class LoopTime(Protocol):
    """The clock and timers from which guest time is derived: the loop's, or a test's."""

    clock: Callable[[], float]

    def after(self, seconds: float, callback: Callable[[], Any]) -> Timer: ...

    def every(self, period: float, callback: Callable[[], Any]) -> Timer: ...

    def post(self, callback: Callable[..., Any], *args: Any) -> None: ...


class GuestTimers(Timers):
    """The event loop's timers in guest time: a `pyvmm.vmbus.timers.Scheduler`. On the loop's thread, except `post`.

    `on_stall` is called, on the loop, after a stop of this process was detected.
    """

    def __init__(self, loop: LoopTime, *, frozen: bool = False, on_stall: Callable[[], Any] = lambda: None) -> None:
        super().__init__(self._now)
        self._loop = loop
        self._on_stall = on_stall
        self._seen = loop.clock()
        self._lost = 0.0  # seconds of the loop's clock that are not guest time
        self._reasons = {PAUSED} if frozen else set()  # why guest time stands still
        self._frozen_at: float | None = self._seen if frozen else None  # guest time
        self._alarm: Timer | None = None  # the loop's timer for the next guest timer due
        self._look = loop.every(LOOK_PERIOD, self._now)

    def _now(self) -> float:
        now = self._loop.clock()
        gap = now - self._seen
        self._seen = now
        if gap > STALL and self._frozen_at is None:
            self._lost += gap
            self._loop.post(self._stalled)
        return now - self._lost if self._frozen_at is None else self._frozen_at

    def _stalled(self) -> None:
        self._arm()
        self._on_stall()

    @property
    def frozen(self) -> bool:
        return self._frozen_at is not None

    def freeze(self, why: str = PAUSED) -> None:
        """Stop guest time for `reason`. Harmless twice; it runs again once no reason is left."""
        self._reasons.add(why)
        if self._frozen_at is None:
            self._frozen_at = self._now()
            self._disarm()

    def thaw(self, why: str = PAUSED) -> None:
        """Remove `reason`; guest time runs again if it was the last. Harmless twice."""
        self._reasons.discard(why)
        if self._frozen_at is not None and not self._reasons:
            self._seen = self._loop.clock()
            self._lost = self._seen - self._frozen_at
            self._frozen_at = None
            self._arm()

    def after(self, seconds: float, callback: Callable[..., Any]) -> Timer:
        """Call `callback` once, after `seconds` in which the guest could run."""
        timer = super().after(seconds, callback)
        self._arm()
        return timer

    def every(self, period: float, callback: Callable[..., Any]) -> Timer:
        """Call `callback` every `period` seconds of guest time."""
        timer = super().every(period, callback)
        self._arm()
        return timer

    def post(self, callback: Callable[..., Any], *args: Any) -> None:
        """Run `callback(*args)` on the loop soon, paused or not. From any thread."""
        self._loop.post(callback, *args)

    def close(self) -> None:
        """Cancel all timers."""
        self._look.cancel()
        self._disarm()

    def _arm(self, *, shortest: float = 0.0) -> None:
        """Schedule `_ring` on the loop for when the next timer is due, or earlier: it checks again then."""
        due = self.next_due()
        if due is None or self._frozen_at is not None:
            self._disarm()
            return
        wait = max(due - self._now(), shortest)
        if self._alarm is not None:
            if self._alarm.when <= self._seen + wait:
                return
            self._alarm.cancel()
        self._alarm = self._loop.after(wait, self._ring)

    def _disarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _ring(self) -> None:
        self._alarm = None
        if self._frozen_at is None:
            self.run_due()
            self._arm(shortest=_SHORTEST_WAIT)
