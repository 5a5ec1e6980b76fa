"""Finds what of a debugger's means works on this KVM: INT3, and the debug registers.

QEMU's TCG as the host raises INT3 without the exception intercept that KVM relies on, and its VMRUN loads DR7 without
setting the breakpoints in it; a KVM that interprets code may lack either. No capability tells, so a guest of a few
bytes tries each.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pyvmm.errors import HostError
from pyvmm.kvm import Debug, Hlt, Kvm
from pyvmm.kvm.abi import GuestDebugFlag

_ENTRY: Final = 0x1000
_DATA: Final = 0x800
_HLT: Final = 0xF4
_CODE: Final = bytes.fromhex("90 A20008 CC F4")  # nop; mov [0x800], al; int3; hlt
_NOP, _AFTER_STORE, _INT3 = _ENTRY, _ENTRY + 4, _ENTRY + 4
_WATCH_BYTE: Final = 0x1_0402  # DR7: breakpoint 0 on, at writes of one byte
_BREAK: Final = 0x402
_TRIES: Final = 4  # exits, in case of signals


@dataclass(frozen=True, slots=True)
class Means:
    """What makes a vCPU exit on this KVM."""

    int3: bool = False
    breakpoints: bool = False  # in debug registers
    watchpoints: bool = False


def find_means(kvm: Kvm) -> Means:
    """Try each. Takes some milliseconds."""
    try:
        return Means(
            int3=_stops_at(kvm, GuestDebugFlag.USE_SW_BP) == _INT3,
            breakpoints=_stops_at(kvm, GuestDebugFlag.USE_HW_BP, (_NOP, 0, 0, 0, 0, 0, 0, _BREAK)) == _NOP,
            watchpoints=_stops_at(kvm, GuestDebugFlag.USE_HW_BP, (_DATA, 0, 0, 0, 0, 0, 0, _WATCH_BYTE))
            == _AFTER_STORE,
        )
    except HostError:
        return Means()


def _stops_at(kvm: Kvm, flag: GuestDebugFlag, values: Sequence[int] = ()) -> int | None:
    """Return where a debug exit stops the guest; None if it runs to its end."""
    with kvm.create_vm() as vm:
        memory = mmap.mmap(-1, 2 * mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory[0] = _HLT  # where the vector table, all zero but this, leads
        memory[_ENTRY : _ENTRY + len(_CODE)] = _CODE
        pinned = ctypes.c_char.from_buffer(memory)
        vm.set_memory(0, 0, len(memory), ctypes.addressof(pinned))
        vcpu = vm.create_vcpu(0)
        sregs = vcpu.sregs
        sregs.cs.base = sregs.cs.selector = 0
        vcpu.sregs = sregs
        regs = vcpu.regs
        regs.rip, regs.rsp, regs.rflags = _ENTRY, _DATA, 2
        vcpu.regs = regs
        vcpu.set_guest_debug(GuestDebugFlag.ENABLE | flag, values)
        for _ in range(_TRIES):
            match vcpu.run():
                case Debug(pc=pc):
                    return pc
                case Hlt():
                    return None
        return None
