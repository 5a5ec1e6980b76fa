"""Tracks a resize through the monitor's events until it has ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PAGE = 4096

EVENTS = frozenset({"BALLOON_CHANGE", "X_BALLOON_FINISHED", "X_BALLOON_TARGET"})

REPLACED = "another target was set meanwhile"


class ResizeProgress:
    """Progress of a resize to `size`, updated by the events that follow the `reply` to `x-balloon`.

    `actual` starts as the guest's current size; `result` is empty until the end, then `reached` or the reason.
    `asked_again`: the guest stopped short, and the request is repeated for some seconds.
    """

    def __init__(self, size: int, reply: Mapping[str, Any], actual: int) -> None:
        self.goal: int = reply["will-reach"]
        self.size = self.goal if 0 <= size - self.goal < PAGE else size  # a guest's memory comes in whole pages
        self.actual = actual
        self.result = ""
        self.asked_again = False
        self._reason: str = reply["reason"]
        self._target = size - size % PAGE
        if actual == self.goal:
            self._end("")

    def update(self, name: str, data: Mapping[str, Any]) -> None:
        """Update the progress from an event."""
        match name:
            case "BALLOON_CHANGE":
                self.actual = data["actual"]
            case "X_BALLOON_FINISHED" if data["target"] == self._target:
                self.actual = data["actual"]
                self.asked_again = not data["final"]
                self._end(data["reason"])
            case "X_BALLOON_TARGET" if data["target"] - data["target"] % PAGE != self._target:
                self._end(REPLACED)

    def _end(self, reason: str) -> None:
        if self.actual != self.goal:
            self.result = reason or "reached"
        else:
            self.result = "reached" if self.goal == self.size else self._reason or "will-reach"
