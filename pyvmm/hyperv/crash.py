"""The crash registers: a guest's panic report of five parameters, with a page of kernel log if the guest gives one.

Source: TLFS 2.4 (crash enlightenment); Linux hyperv_report_panic() and hv_kmsg_dump(). Linux writes P0..P4 and then
CRASH_CTL. With the message bit P3 is the gpa of the text and P4 its size (at most a page); without it P0 is the error
code, P2 the RIP, P3 RAX and P4 RSP.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyvmm.errors import GuestMemoryError
from pyvmm.hyperv import events as trace
from pyvmm.hyperv.tlfs import CrashControl, Msr
from pyvmm.memory import PAGE_SIZE, GuestMemory

SUPPORTED = 1 << 63 | 1 << 62
"""The value of CRASH_CTL when read: notification and text are both supported."""


@dataclass(slots=True)
class CrashReport:
    """A guest's panic report: `parameters` are P0..P4; `text` is empty if the guest gave none."""

    parameters: tuple[int, int, int, int, int]
    text: str

    def summary(self) -> str:
        """One line: the panic line of the text, or the registers."""
        if self.text:
            return panic_line(self.text)
        p0, _, p2, p3, p4 = self.parameters
        return f"error {p0:#x}, rip {p2:#x}, rax {p3:#x}, rsp {p4:#x}"


def panic_line(text: str) -> str:
    """The line of a panic text that says what happened: the one with the panic, else the first."""
    lines = text.splitlines()
    for line in lines:
        if "Kernel panic" in line or "BUG:" in line or "Oops" in line:
            return line.split("] ", 1)[-1].strip()
    return lines[0] if lines else ""


class CrashRegisters:
    """CRASH_P0..P4 and CRASH_CTL; written by any vCPU thread, under the engine's lock."""

    def __init__(self) -> None:
        self.parameters = [0, 0, 0, 0, 0]

    def read(self, msr: int) -> int:
        return SUPPORTED if msr == Msr.CRASH_CTL else self.parameters[msr - Msr.CRASH_P0]

    def write(self, msr: int, value: int, memory: GuestMemory) -> CrashReport | None:
        """Store a register. Returns the report when CRASH_CTL says that the parameters are complete."""
        if msr != Msr.CRASH_CTL:
            self.parameters[msr - Msr.CRASH_P0] = value
            return None
        control = CrashControl(value)
        if not control.notify:
            return None
        text = ""
        p0, p1, p2, p3, p4 = self.parameters
        if control.message and p4:
            try:
                text = memory.read(p3, min(p4, PAGE_SIZE)).decode("utf-8", "replace").rstrip("\0\n")
            except GuestMemoryError as error:
                text = f"(the guest's panic text is out of reach: {error})"
        if trace.crash.on:
            trace.crash(p0, p1, p2, p3, p4, len(text))
        return CrashReport((p0, p1, p2, p3, p4), text)
