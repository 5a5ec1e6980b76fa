"""Events of a machine for its monitor, and notices for its user."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from pyvmm import qapi
from pyvmm.machine import events as trace

Listener = Callable[[str, dict[str, Any]], None]

NOTICES_KEPT = 8
"""Notices that `pyvmm status` shows: the last ones, for a guest can bring about many."""


class Notifier:
    """Calls each listener with each event's QMP name and data. On the loop's thread."""

    def __init__(self) -> None:
        self.listeners: list[Listener] = []
        self.notices: deque[str] = deque(maxlen=NOTICES_KEPT)

    def emit(self, happened: qapi.Happened) -> None:
        """Send an event."""
        for listener in self.listeners:
            listener(*happened)

    def notice(self, text: str) -> None:
        """Tell the user about the machine: an event, a line on stderr, and a line of `pyvmm status`."""
        if trace.notice.on:
            trace.notice(text)
        self.notices.append(text)
        self.emit(qapi.X_NOTICE({"text": text}))
