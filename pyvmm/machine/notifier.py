"""Sends a machine's events to its monitor, and notices to its user."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from pyvmm import qapi
from pyvmm.machine import events as trace

Listener = Callable[[str, dict[str, Any]], None]

NOTICES_KEPT = 8
"""Limit of notices that `pyvmm status` shows: the last ones, for a guest can cause many."""


class Notifier:
    """Calls each listener with each event's QMP name and data. All methods run on the loop's thread."""

    def __init__(self) -> None:
        self.listeners: list[Listener] = []
        self.notices: deque[str] = deque(maxlen=NOTICES_KEPT)

    def emit(self, occurrence: qapi.Occurrence) -> None:
        """Send an event."""
        for listener in self.listeners:
            listener(*occurrence)

    def notice(self, text: str) -> None:
        """Show the user a notice: as an event, as a line on stderr, and in `pyvmm status`."""
        if trace.notice.on:
            trace.notice(text)
        self.notices.append(text)
        self.emit(qapi.X_NOTICE({"text": text}))
