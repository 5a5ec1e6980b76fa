"""The lines of `pyvmm run --debug`: accesses that nothing handled, exits, and a table at the machine's end.

The first access to each address, MSR or call is always printed (there are `machine.unhandled.LIMIT` at most). Beyond
that each kind has RATE lines a second; the number of those left out is in the kind's next line, or at the end.

    vCPU thread: access -> UnhandledLog -> _unhandled() -> queue --loop--> stderr
                 exit   -> trace event  -> _exit()      ---^
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyvmm import trace
from pyvmm.client.replies import access_text
from pyvmm.launch.outputs import try_print_message
from pyvmm.loop import Pending

if TYPE_CHECKING:
    from pyvmm.machine import Machine
    from pyvmm.machine.unhandled import Unhandled
    from pyvmm.qapi import UnhandledInfo

RATE = 10
"""Lines a second of each kind."""

_EXIT_EVENT = "machine.vcpu_exit"
_OPTION_OF = {"port": "ports", "mmio": "mmio", "msr": "msr", "hypercall": "hypercalls", "exit": "exits"}
"""The kind of `--debug` by the first word of an entry's kind."""


@dataclass(slots=True)
class _Budget:
    """Lines of one kind that may be printed in the current second."""

    second: int = 0
    used: int = 0
    left_out: int = 0

    def take(self, now: float, *, always: bool) -> bool:
        """Return whether a line may be printed at `now`; count it."""
        if int(now) != self.second:
            self.second, self.used = int(now), 0
        if self.used >= RATE and not always:
            self.left_out += 1
            return False
        self.used += 1
        return True


class DebugLines:
    """Prints a machine's unhandled accesses of some kinds (`options.DEBUG_KINDS`), with "exits" its exits too."""

    def __init__(
        self,
        machine: Machine,
        kinds: Collection[str],
        *,
        show: Callable[[str], None] = try_print_message,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = machine.unhandled
        self._kinds = kinds
        self._say = show
        self._clock = clock
        self._budgets = {kind: _Budget() for kind in kinds}
        self._lines: deque[str] = deque()  # bounded by the budgets
        self._print_soon = Pending(machine.loop, self._print)
        self._log.listener = self._unhandled
        self._sink = self._exit
        if "exits" in kinds:
            trace.subscribe(_EXIT_EVENT, self._sink)

    def finish(self) -> None:
        """Print what is left, and the table. The machine has ended."""
        self._log.listener = None
        trace.unsubscribe(self._sink)
        self._print()
        for kind, budget in self._budgets.items():
            if budget.left_out:
                self._say(f"{kind}: {budget.left_out} more lines left out, {RATE} a second are shown")
        for line in table(self._log.describe(), self._kinds):
            self._say(line)

    def _unhandled(self, entry: Unhandled, detail: str) -> None:
        kind = _OPTION_OF[entry.kind.split()[0]]
        if kind in self._kinds and kind != "exits":  # exits are printed with all the others
            line = f"unhandled {access_text(entry.kind, entry.number, entry.name)}: {detail}"
            if entry.vcpu is not None and entry.count == 1:
                line += f", vcpu {entry.vcpu} at {entry.rip:#x}"
            self._add(kind, line, always=entry.count == 1)

    def _exit(self, record: trace.Record) -> None:
        vcpu, exit, detail = record.values
        fields = " ".join(f"{name}={_value(each)}" for name, each in detail.items())
        self._add("exits", f"vcpu {vcpu} exit {exit} {fields}".rstrip())

    def _add(self, kind: str, line: str, *, always: bool = False) -> None:
        budget = self._budgets[kind]
        if budget.take(self._clock(), always=always):
            left_out, budget.left_out = budget.left_out, 0
            self._lines.append(f"{line} ({left_out} before it left out)" if left_out else line)
            self._print_soon.ask()

    def _print(self) -> None:
        while self._lines:
            self._say(self._lines.popleft())


def _value(value: object) -> str:
    return f"{value:#x}" if isinstance(value, int) else str(value)


def table(about: UnhandledInfo, kinds: Collection[str]) -> list[str]:
    """Format the entries of `kinds` in an UnhandledLog's description, the most frequent first."""
    rows = [row for row in about["accesses"] if _OPTION_OF[row["kind"].split()[0]] in kinds]
    if not rows and not about["more"]:
        return [f"unhandled accesses ({', '.join(sorted(kinds))}): none"]
    cells = [("access", "count", "first by")]
    for row in rows:
        first = "" if row["vcpu"] is None else f"vcpu {row['vcpu']} at {row['rip']:#x}"
        cells.append((access_text(row["kind"], row["number"], row["name"]), str(row["count"]), first))
    wide, long = (max(len(line[column]) for line in cells) for column in (0, 1))
    lines = [f"  {access:<{wide}}  {count:>{long}}  {first}".rstrip() for access, count, first in cells]
    more = [f"  {about['more']} more accesses to other addresses"] if about["more"] else []
    return ["unhandled accesses of the guest:", *lines, *more]
