"""The panic oracle: the guest has crashed, or its machine has ended or was reset.

A panic in an interrupt is reported by the Hyper-V crash registers; one before hv_vmbus is loaded only by the console.
A triple fault resets the machine without a word.
"""

from __future__ import annotations

import re
from typing import ClassVar

from pyvmm.guest_text import clean
from pyvmm.testbed.oracles.asking import Answer
from pyvmm.testbed.oracles.oracle import Bed, Finding, Oracle

CONSOLE_LINES = 40
"""Lines of the console's end in a finding's details."""

_PANIC = re.compile(r"Kernel panic - not syncing.*")


class Panic(Oracle):
    """Finds a guest that has crashed, ended or reset its machine since `begin`."""

    name: ClassVar[str] = "panic"

    def __init__(self, vm: Bed) -> None:
        super().__init__(vm)
        self._resets = self._panics = self._offset = 0

    def begin(self, answer: Answer | None) -> None:
        machine = self.vm.machine
        self._resets, self._panics = machine.resets, machine.panic.count
        first, data = machine.console_tail.since(0)
        self._offset = first + len(data)

    def judge(self, answer: Answer | None) -> list[Finding]:
        machine = self.vm.machine
        tail = self._console()
        end = "\n".join(tail.splitlines()[-CONSOLE_LINES:])
        report = machine.panic.report
        if report is not None and machine.panic.count != self._panics:
            return [self.finding(report.summary(), clean(report.text).strip() or end)]
        if found := _PANIC.search(tail):
            return [self.finding(found[0].rstrip("- ]"), end)]
        if machine.outcome is not None:
            return [
                self.finding(f"the machine has ended: {machine.outcome.kind} {machine.outcome.text}".rstrip(), end)
            ]
        if machine.resets != self._resets:
            times, self._resets = machine.resets - self._resets, machine.resets
            return [self.finding(f"the machine was reset {'once' if times == 1 else f'{times} times'}", end)]
        return []

    def _console(self) -> str:
        return clean(self.vm.machine.console_tail.since(self._offset)[1])
