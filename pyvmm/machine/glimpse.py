"""Where a vCPU is at one moment: what tells a kernel that is dead from one that works without a word."""

from __future__ import annotations

from dataclasses import dataclass

from pyvmm.kvm import MpState, Vcpu

_RFLAGS_IF = 1 << 9
_CR3_ADDRESS = 0x000F_FFFF_FFFF_F000


@dataclass(frozen=True, slots=True)
class Glimpse:
    """`page_table` is CR3's address. A vCPU that has not been started is halted with `interrupts` off."""

    rip: int
    page_table: int
    interrupts: bool
    halted: bool

    @property
    def idles(self) -> bool:
        """Whether it waits for an interrupt, as a kernel with nothing to do."""
        return self.halted and self.interrupts

    @property
    def stands(self) -> bool:
        """Whether nothing but a reset or an NMI makes it go on."""
        return self.halted and not self.interrupts


def glimpse(vcpu: Vcpu) -> Glimpse:
    """Look at a vCPU that does not run just now. Raises HostError."""
    regs, sregs = vcpu.regs, vcpu.sregs
    halted = vcpu.mp_state is not MpState.RUNNABLE
    return Glimpse(regs.rip, sregs.cr3 & _CR3_ADDRESS, bool(regs.rflags & _RFLAGS_IF), halted)
