"""The log oracle: what the guest's kernel has logged of damage since `begin`, or since the last check.

The lines are chosen in the guest, each with what follows it: the whole log would take seconds.
"""

from __future__ import annotations

import re
from typing import ClassVar

from pyvmm.testbed.oracles.log_lines import PATTERN, WORST_LEVEL, Line, Report, parse, reports
from pyvmm.testbed.oracles.oracle import Bed, Finding, Oracle

AFTER = 30
"""Lines after a telling one: a call trace with registers."""


class KernelLog(Oracle):
    """Finds new reports in the guest kernel's log; each is found once."""

    name: ClassVar[str] = "log"
    question: ClassVar[str] = f"dmesg -r | grep -E -A{AFTER} '^<[0-{WORST_LEVEL}]>|{PATTERN}'"

    def __init__(self, vm: Bed) -> None:
        super().__init__(vm)
        self._seen: set[Line] = set()
        self._allowed: list[re.Pattern[str]] = []

    def allow(self, pattern: str) -> None:
        """Let a report pass if the regular expression `pattern` matches in its first telling line."""
        self._allowed.append(re.compile(pattern))

    def begin(self, answer: str | None) -> None:
        self.new_reports(answer)

    def judge(self, answer: str | None) -> list[Finding]:
        return [
            self.finding(f"{each.kind}: {each.headline.text}", "\n".join(map(str, each.lines)))
            for each in self.new_reports(answer)
            if not any(pattern.search(each.headline.text) for pattern in self._allowed)
        ]

    def new_reports(self, answer: str | None) -> list[Report]:
        """Return the reports in `answer` that were not there before."""
        new = [each for each in reports(parse(answer or "")) if each.headline not in self._seen]
        self._seen.update(each.headline for each in new)
        return new
