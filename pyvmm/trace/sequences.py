"""Messages between guest and host, as a report draws them. Devices make theirs from events (`views.DeviceView`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


class Entry(Protocol):
    """An event read from a trace (`pyvmm.analysis.entry.Entry`)."""

    @property
    def name(self) -> str: ...
    @property
    def time(self) -> float: ...
    @property
    def fields(self) -> Mapping[str, Any]: ...
    def number(self, name: str, /) -> int: ...
    def text(self, name: str, /) -> str: ...
    def message(self) -> str: ...


@dataclass(slots=True)
class Message:
    """A message, drawn as an arrow. `begin` is when it was sent, where the trace has both ends, else `time`."""

    time: float
    to_host: bool
    label: str
    detail: str = ""
    begin: float | None = None
    bad: bool = False


@dataclass(slots=True)
class Note:
    """A note on an action of one side alone."""

    time: float
    text: str


@dataclass(slots=True)
class Sequence:
    """A sequence of messages. `result` is its outcome, empty if the trace has none."""

    title: str
    steps: list[Message | Note] = field(default_factory=list)
    result: str = ""
    end: float | None = None
    device: str = ""  # the package of its events

    @property
    def begin(self) -> float:
        return self.steps[0].time if self.steps else 0.0

    @property
    def messages(self) -> list[Message]:
        return [step for step in self.steps if isinstance(step, Message)]


def counted(number: int, what: str) -> str:
    """Format a count: `1 message`, `2 messages`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
