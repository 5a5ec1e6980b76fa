"""Events that would come faster than anybody wants: the newest one is kept and sent when its time has come.

Source: QEMU monitor/monitor.c, which sends these at most once a second. A guest decides how often they happen, so
without a limit it could fill the clients' buffers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from pyvmm.control import events as trace

EventData = dict[str, Any]
Send = Callable[[str, EventData], None]


class Timing(Protocol):
    """The part of the loop that is needed."""

    def after(self, seconds: float, callback: Callable[[], Any], /) -> Any: ...


PERIODS = {
    "BALLOON_CHANGE": 0.1,  # QEMU: 1 s, too coarse to draw progress with
    "X_BALLOON_FINISHED": 0.1,
    "HV_BALLOON_STATUS_REPORT": 1.0,
    "MEMORY_DEVICE_SIZE_CHANGE": 1.0,
}
"""Seconds between two events of a name."""

OUTDATES = {"X_BALLOON_TARGET": "X_BALLOON_FINISHED"}
"""Events after which one that is still held back is void: how the resize to an earlier target ended."""


class Throttle:
    """Passes events on to `send`, those in `PERIODS` no more often than that. The last of a burst is never lost."""

    def __init__(self, timing: Timing, send: Send) -> None:
        self._timing = timing
        self._send = send
        self._waiting: dict[str, EventData | None] = {}  # names sent lately; what came since

    def __call__(self, name: str, data: EventData) -> None:
        if self._waiting.get(OUTDATES.get(name, "")) is not None:
            self._waiting[OUTDATES[name]] = None
        period = PERIODS.get(name)
        if period is None:
            self._send(name, data)
        elif name in self._waiting:
            self._waiting[name] = data
            if trace.queued.on:
                trace.queued(name, data, period)
        else:
            self._waiting[name] = None
            self._timing.after(period, lambda: self._due(name))
            self._send(name, data)

    def _due(self, name: str) -> None:
        data = self._waiting.pop(name, None)
        if data is not None:
            self(name, data)

    def flush(self) -> None:
        """Send what is held back, now: the machine is going away."""
        held, self._waiting = self._waiting, {}
        for name, data in held.items():
            if data is not None:
                self._send(name, data)
