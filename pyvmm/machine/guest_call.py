"""A call instruction of the guest's under a breakpoint: made in the guest's place."""

from __future__ import annotations

from typing import Final

from pyvmm.errors import HostError
from pyvmm.gdb.page_tables import Paging
from pyvmm.kvm import Interrupted, Regs, Vcpu
from pyvmm.memory import GuestMemory

CALL: Final = 5
"""Bytes of a direct call, or of a jump as long."""

CALL_OPCODE: Final = 0xE8
JUMP_OPCODE: Final = 0xE9
_ADDRESSES: Final = 1 << 64


def make_call(vcpu: Vcpu, memory: GuestMemory, address: int, code: bytes) -> None:
    """Let a stopped vCPU do the call, or the jump, `code` at `address`. Raises HostError if it has no stack."""
    regs = vcpu.regs
    behind = address + CALL
    if code[0] == CALL_OPCODE:
        sregs = vcpu.sregs
        paging = Paging(sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer)
        gpa = paging.translate(memory, regs.rsp - 8)
        if gpa is None:
            raise HostError(f"the guest's stack at {regs.rsp:#x} is not mapped")
        memory.write(gpa, behind.to_bytes(8, "little"))
        regs.rsp -= 8
    regs.rip = (behind + int.from_bytes(code[1:], "little", signed=True)) % _ADDRESSES
    vcpu.regs = regs


def complete(vcpu: Vcpu) -> Regs:
    """Let a KVM that advances RIP at the next entry do so now, and return the registers then."""
    vcpu.immediate_exit = True
    while type(vcpu.run()) is not Interrupted:
        pass
    return vcpu.regs
