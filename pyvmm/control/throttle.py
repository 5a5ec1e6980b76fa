"""Rate limit for events: between two sends only the newest is kept.

Source: QEMU monitor/monitor.c, which sends these at most once a second. A guest decides how often they happen, so
without a limit it could fill the clients' buffers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from pyvmm.control import events as trace
from pyvmm.qapi import EVENTS

EventData = dict[str, Any]
Send = Callable[[str, EventData], None]


class Timing(Protocol):
    """The part of the loop that the throttle uses."""

    def after(self, seconds: float, callback: Callable[[], Any], /) -> Any: ...


class Throttle:
    """Passes events on to `send`, at most as often as their declarations allow. The last of a burst is never lost."""

    def __init__(self, timing: Timing, send: Send) -> None:
        self._timing = timing
        self._send = send
        self._waiting: dict[str, EventData | None] = {}  # names sent within their period; the newest event since

    def __call__(self, name: str, data: EventData) -> None:
        event = EVENTS[name]
        period = event.at_most_every
        if self._waiting.get(event.supersedes) is not None:
            self._waiting[event.supersedes] = None
        if not period:
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
        """Send the events held back at once: the machine ends."""
        held, self._waiting = self._waiting, {}
        for name, data in held.items():
            if data is not None:
                self._send(name, data)
