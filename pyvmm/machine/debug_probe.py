"""Finds which instruction makes a breakpoint on this KVM: INT3 where that leaves the guest, else OUT.

QEMU's TCG as the host raises INT3 without the exception intercept that KVM relies on, and KVMs that interpret code
may not know it either; no capability tells. So a guest of two bytes executes one.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Final

from pyvmm.errors import HostError
from pyvmm.gdb.breakpoints import INT3, OUT
from pyvmm.kvm import Debug, Hlt, Kvm
from pyvmm.kvm.abi import GuestDebugFlag

_ENTRY: Final = 0x1000
_HLT: Final = 0xF4
_TRIES: Final = 4  # exits, in case of signals


def breakpoint_code(kvm: Kvm) -> bytes:
    """Return the bytes of a software breakpoint. Takes some milliseconds."""
    try:
        return INT3 if _int3_exits(kvm) else OUT
    except HostError:
        return OUT


def _int3_exits(kvm: Kvm) -> bool:
    with kvm.create_vm() as vm:
        memory = mmap.mmap(-1, 2 * mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory[0] = _HLT  # where the vector table, all zero but this, leads
        memory[_ENTRY : _ENTRY + 2] = INT3 + bytes([_HLT])
        pinned = ctypes.c_char.from_buffer(memory)
        vm.set_memory(0, 0, len(memory), ctypes.addressof(pinned))
        vcpu = vm.create_vcpu(0)
        sregs = vcpu.sregs
        sregs.cs.base = sregs.cs.selector = 0
        vcpu.sregs = sregs
        regs = vcpu.regs
        regs.rip, regs.rsp, regs.rflags = _ENTRY, 0x800, 2
        vcpu.regs = regs
        vcpu.set_guest_debug(GuestDebugFlag.ENABLE | GuestDebugFlag.USE_SW_BP)
        for _ in range(_TRIES):
            match vcpu.run():
                case Debug(pc=pc):
                    return pc == _ENTRY
                case Hlt():
                    return False
        return False
