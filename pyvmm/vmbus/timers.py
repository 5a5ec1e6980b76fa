"""Timers of a channel, in the loop's clock: a bounded number is kept, and none fires after the channel's end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from pyvmm.loop import Timer

TIMERS_SWEPT = 32
"""Number of timers at which cancelled ones are purged first; afterwards at twice the number left. No device of ours
has more than three at a time."""


class Scheduler(Protocol):
    """The part of the event loop's interface that channels use."""

    clock: Callable[[], float]

    def after(self, seconds: float, callback: Callable[[], Any]) -> Timer: ...

    def every(self, period: float, callback: Callable[[], Any]) -> Timer: ...

    def post(self, callback: Callable[..., Any], *args: Any) -> None: ...


class ChannelTimers:
    """Timers of one channel. `guarded(callback)` runs a callback and catches its exceptions."""

    def __init__(self, loop: Scheduler, guarded: Callable[[Callable[[], Any]], object]) -> None:
        self._loop = loop
        self._guarded = guarded
        self._kept: set[Timer] = set()
        self._sweep_at = TIMERS_SWEPT
        self._ended = False

    def __len__(self) -> int:
        return len(self._kept)

    def after(self, seconds: float, callback: Callable[[], Any]) -> Timer:
        """Call `callback()` once, `seconds` from now."""

        def run() -> None:
            self._kept.discard(timer)
            self._guarded(callback)

        timer = self._loop.after(seconds, run)
        return self._keep(timer)

    def every(self, period: float, callback: Callable[[], Any]) -> Timer:
        """Call `callback()` every `period` seconds until cancelled."""
        return self._keep(self._loop.every(period, lambda: self._guarded(callback)))

    def end(self) -> None:
        """Cancel all timers, and any that are requested later."""
        self._ended = True
        for timer in self._kept:
            timer.cancel()
        self._kept.clear()
        self._guarded = lambda callback: None  # no reference to the channel: it is freed without garbage collection

    def _keep(self, timer: Timer) -> Timer:
        if self._ended:
            timer.cancel()
            return timer
        self._kept.add(timer)
        if len(self._kept) >= self._sweep_at:
            self._kept = {t for t in self._kept if not t.cancelled}
            self._sweep_at = max(TIMERS_SWEPT, 2 * len(self._kept))
        return timer
