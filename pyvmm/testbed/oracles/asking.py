"""Asks the guest's agent for what the oracles need, in one command.

A command costs the guest some forks and each byte of its output an exit, so one grep reads all files; a shell that
reads them itself takes seconds in an emulated host, as it does so byte by byte. An agent that does not answer is a
finding, not an error of the test.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from shlex import quote
from typing import TYPE_CHECKING

from pyvmm.errors import ConfigError

if TYPE_CHECKING:
    from pyvmm.testbed.oracles.oracle import Bed, Oracle

MARK = "@@pyvmm-oracle"
"""A line between what was read and what a command printed; nothing that a kernel prints."""


BEGIN = ": pyvmm-oracle\nexec 2>/dev/null\n"
"""How each command of the oracles begins, by which a report knows them."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Lines of the guest's files by their path, and the output of a command."""

    files: dict[str, list[str]] = field(default_factory=dict)
    output: str = ""

    def under(self, start: str, end: str = "") -> dict[str, str]:
        """Return the first line of each file whose path begins and ends so, by what is between."""
        return {
            path[len(start) : len(path) - len(end)]: lines[0]
            for path, lines in self.files.items()
            if path.startswith(start) and path.endswith(end)
        }


def can_answer(vm: Bed) -> bool:
    """Return whether the guest runs and its agent was there once."""
    machine = vm.machine
    return machine.outcome is None and machine.state == "running" and machine.agent.ready


def ask_for(vm: Bed, oracles: Iterable[Oracle], seconds: float, command: str = "") -> Answer | None:
    """Return what the oracles want to know, and the output of `command`; None without an answer in `seconds`."""
    chosen = list(oracles)
    files = [name for oracle in chosen for name in oracle.FILES]
    pattern = "|".join(oracle.PATTERN for oracle in chosen if oracle.PATTERN)
    grep = f"grep -sHE {quote(pattern)} {' '.join(files)}" if files else ":"
    commands = [oracle.command for oracle in chosen if oracle.command] + ([command] if command else [])
    return ask(vm, [grep, *commands], seconds)


def ask(vm: Bed, commands: Sequence[str], seconds: float) -> Answer | None:
    """Run shell commands in the guest, the first of which prints lines PATH:TEXT; None without an answer in time."""
    if not can_answer(vm):
        return None
    output = bytearray()
    status: list[int | None] = []
    try:
        cancel = vm.machine.agent.execute(
            BEGIN + f"\necho {MARK}\n".join(commands),
            lambda stream, data: output.extend(data) if stream == "out" else None,
            status.append,
        )
    except ConfigError:  # too many commands wait for it already
        return None
    limit = time.monotonic() + seconds
    while not status and (left := limit - time.monotonic()) > 0 and can_answer(vm):
        vm.loop.step(left)
    if not status:
        cancel()
    return parse(output.decode("utf-8", "replace")) if status and status[0] is not None else None


def parse(text: str) -> Answer:
    """Return the answer in the commands' output."""
    files: dict[str, list[str]] = {}
    first, *others = text.split(f"{MARK}\n")
    for line in first.splitlines():
        path, colon, rest = line.partition(":")
        if colon and path.startswith("/"):
            files.setdefault(path, []).append(rest)
    return Answer(files, "".join(others))
