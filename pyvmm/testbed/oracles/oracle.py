"""The base class of oracles, and what they find."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from pyvmm.testbed.oracles.asking import Answer

if TYPE_CHECKING:
    from pyvmm.loop import Loop
    from pyvmm.machine import Machine


class Bed(Protocol):
    """The part of `testbed.vm.VM` that oracles use."""

    machine: Machine
    loop: Loop


@dataclass(frozen=True, slots=True)
class Finding:
    """A sign that the guest is not well: one line, and what explains it (registers, stacks, a part of a log)."""

    oracle: str
    line: str
    details: str = ""

    def __str__(self) -> str:
        return f"{self.oracle}: {self.line}"

    @property
    def text(self) -> str:
        """The line, and the details below it."""
        indented = "\n".join(f"    {line}" for line in self.details.splitlines())
        return f"{self}\n{indented}" if indented else str(self)


class Oracle:
    """One check of one guest. A subclass has a `name`, and judges by the host's own state or by what the guest's
    files say: those of FILES (patterns of the guest's shell), of which lines are read that match PATTERN (grep -E's).

        begin     what is there now is the guest's ordinary state
        watch     called several times while the guest is watched
        judge     return what is wrong, by the files; None: the guest did not answer
    """

    name: ClassVar[str]
    FILES: ClassVar[tuple[str, ...]] = ()
    PATTERN: ClassVar[str] = ""

    def __init__(self, vm: Bed) -> None:
        self.vm = vm

    @property
    def command(self) -> str:
        """A shell command whose output the answer has too; empty if none is needed."""
        return ""

    def begin(self, answer: Answer | None) -> None:
        """Take the guest's present state for its ordinary one."""

    def open_window(self) -> None:
        """Handle the beginning of a watch."""

    def watch(self) -> None:
        """Look at the running guest."""

    def judge(self, answer: Answer | None) -> list[Finding]:
        """Return what is wrong."""
        raise NotImplementedError

    def finding(self, line: str, details: str = "") -> Finding:
        """Return a finding of this oracle."""
        return Finding(self.name, line, details)
