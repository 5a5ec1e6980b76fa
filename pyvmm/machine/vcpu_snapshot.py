"""A snapshot of a vCPU's registers, to distinguish a dead kernel from one that runs without output."""

from __future__ import annotations

from dataclasses import dataclass

from pyvmm.kvm import MpState, Vcpu

_RFLAGS_IF = 1 << 9
_CR3_ADDRESS = 0x000F_FFFF_FFFF_F000


@dataclass(frozen=True, slots=True)
class VcpuSnapshot:
    """A vCPU's state. `page_table` is CR3's address. A vCPU not yet started is halted with `interrupts` off."""

    rip: int
    page_table: int
    interrupts: bool
    halted: bool

    @property
    def is_idle(self) -> bool:
        """Whether the vCPU is halted with interrupts enabled, as in an idle kernel."""
        return self.halted and self.interrupts

    @property
    def is_stuck(self) -> bool:
        """Whether the vCPU is halted with interrupts disabled: only a reset or an NMI resumes it."""
        return self.halted and not self.interrupts


def take_snapshot(vcpu: Vcpu) -> VcpuSnapshot:
    """Read the state of a vCPU that is not running. Raises HostError."""
    regs, sregs = vcpu.regs, vcpu.sregs
    halted = vcpu.mp_state is not MpState.RUNNABLE
    return VcpuSnapshot(regs.rip, sregs.cr3 & _CR3_ADDRESS, bool(regs.rflags & _RFLAGS_IF), halted)
