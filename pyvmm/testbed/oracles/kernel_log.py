"""The log oracle: what the guest's kernel has logged of damage since `begin`, or since the last check.

The host reads the log in guest memory (`kernel.printk`), of a hung or crashed guest too. Where it cannot, the guest
is asked for the telling lines and what follows them, which takes it seconds in an emulated host.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import ClassVar

from pyvmm.testbed.kernel.printk import LogReader
from pyvmm.testbed.kernel.view import KernelView, NoKernelError
from pyvmm.testbed.oracles.asking import Answer
from pyvmm.testbed.oracles.log_lines import PATTERN, WORST_LEVEL, Line, Report, parse, reports
from pyvmm.testbed.oracles.oracle import Bed, Finding, Oracle

AFTER = 30
"""Lines after a telling one that the guest sends: a call trace with registers."""


class KernelLog(Oracle):
    """Finds new reports in the guest kernel's log; each is found once. `view()` reads the kernel, if it can be."""

    name: ClassVar[str] = "log"
    DMESG: ClassVar[str] = f"dmesg -r | grep -E -A{AFTER} '^<[0-{WORST_LEVEL}]>|{PATTERN}'"

    def __init__(self, vm: Bed, view: Callable[[], KernelView | None] = lambda: None) -> None:
        super().__init__(vm)
        self._view = view
        self._reader: LogReader | None = None
        self._resets = 0
        self._seen: set[Line] = set()
        self._allowed: list[re.Pattern[str]] = []

    @property
    def command(self) -> str:
        """The command for a guest whose memory tells nothing."""
        return self.DMESG if self._view() is None else ""

    def allow(self, pattern: str) -> None:
        """Let a report pass if the regular expression `pattern` matches in its first telling line."""
        self._allowed.append(re.compile(pattern))

    def begin(self, answer: Answer | None) -> None:
        self.new_reports(answer)

    def judge(self, answer: Answer | None) -> list[Finding]:
        return [
            self.finding(f"{each.kind}: {each.headline.text}", "\n".join(map(str, each.lines)))
            for each in self.new_reports(answer)
            if not any(pattern.search(each.headline.text) for pattern in self._allowed)
        ]

    def new_reports(self, answer: Answer | None) -> list[Report]:
        """Return the reports in the log that were not there before."""
        lines = self.read()
        if lines is None:
            lines = list(parse(answer.output if answer is not None else ""))
        new = [each for each in reports(lines) if each.headline not in self._seen]
        self._seen.update(each.headline for each in new)
        return new

    def read(self) -> list[Line] | None:
        """Return the lines of the log since the last call, by guest memory; None if it cannot be read there."""
        view = self._view()
        if view is None:
            return None
        try:
            resets = self.vm.machine.resets
            if self._reader is None or self._reader.view is not view or resets != self._resets:
                self._reader, self._resets = LogReader(view), resets  # a kernel that starts has a new log
            return self._reader.read()
        except NoKernelError:
            return None
