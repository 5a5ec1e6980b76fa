"""Return types of the API: a completed command, a machine's memory, an event, and how a machine ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from pyvmm.guest_text import one_line


class CommandFailed(Exception):
    """A command in the guest ended with a status other than 0; `completed` has its output."""

    def __init__(self, command: str, completed: Completed) -> None:
        last = (completed.stderr or completed.stdout).strip().splitlines()[-1:]
        super().__init__(": ".join([f"{command!r} ended with status {completed.status}", *map(one_line, last)]))
        self.completed = completed


@dataclass(frozen=True, slots=True)
class Completed:
    """Status and output of a command in the guest. `truncated`: there was more than is kept (256 KiB per stream)."""

    status: int
    stdout: str
    stderr: str
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Memory:
    """A machine's memory in bytes. `available` and `committed` are from the guest's reports, None before the first;
    `max` is the most that the guest may get.
    """

    boot: int
    actual: int
    target: int | None
    plugged: int
    resident: int
    available: int | None = None
    committed: int | None = None
    max: int | None = None

    def __str__(self) -> str:
        from pyvmm.client.replies import memory_text

        return memory_text({"boot": self.boot, "actual": self.actual, "target": self.target}, {"max": self.max})


class Event(NamedTuple):
    """A QMP event: its name and data."""

    name: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class End:
    """How a machine ended. `text` is the text of the panic or error; `status` the exit status that the guest wrote to
    the exit port (`test_devices=True`), None without.
    """

    kind: Literal["poweroff", "quit", "reset", "panic", "error"]
    text: str = ""
    status: int | None = None
