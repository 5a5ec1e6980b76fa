"""Events as messages between guest and host, as a report draws them. A device makes its own (`views.DeviceView`)."""

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
    """An arrow. `begin` is when it was sent where the trace tells both ends, else the same as `time`."""

    time: float
    to_host: bool
    label: str
    detail: str = ""
    begin: float | None = None
    bad: bool = False


@dataclass(slots=True)
class Note:
    """Something one side does by itself."""

    time: float
    text: str


@dataclass(slots=True)
class Sequence:
    """A conversation. `result` is how it ended, empty if the trace does not say."""

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
    """`1 message`, `2 messages`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
