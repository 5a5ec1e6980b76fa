"""python-kvm: a binding of /dev/kvm. Uses nothing of pyvmm but its HostError.

A VM in four steps, which are this package in reading order:

1. *Create.* `Kvm()` opens /dev/kvm (system.py), `create_vm()` creates an empty VM (vm.py): no memory, no CPU.
2. *Memory.* `Vm.set_memory` maps a range of this process's memory at a guest physical address.
3. *Run.* `create_vcpu` creates a virtual CPU (vcpu.py, its registers in state.py); `Vcpu.run` executes guest code on
   the real CPU until the guest does something that user space must handle.
4. *Exit.* `run` returns the exit reason (exits.py): a port access, an MMIO access, an MSR access, a halt. Handle it
   and run again.

    with Kvm() as kvm, kvm.create_vm() as vm:
        vm.set_memory(0, gpa=0, size=0x10000, host_address=address)
        vcpu = vm.create_vcpu(0)
        ...first registers...
        while True:
            match vcpu.run():
                case IoOut(0x3F8, data=text): print(text)
                case IoIn() as read: read.reply(b"\\xff")
                case Hlt(): break

`python -m pyvmm.kvm` does just that. Everything else is for speed (coalesced.py, eventfds, sync.py) and for
interrupts (irq.py). abi.py and structs.py hold the kernel's numbers and layouts, caps.py the names of KVM's
capabilities; handle.py issues all ioctls and explains their failures.

Importing the package loads all of its modules; `from pyvmm.kvm import Kvm` is enough to use it.
"""

from pyvmm.kvm.abi import (
    GuestDebugFlag,
    HypervExit,
    IrqchipId,
    MpState,
    MsrExitReason,
    SyncReg,
    SystemEventType,
)
from pyvmm.kvm.caps import Cap
from pyvmm.kvm.coalesced import CoalescedWrite
from pyvmm.kvm.cpuid import CpuidEntry
from pyvmm.kvm.exits import (
    Debug,
    Exit,
    FailEntry,
    Hlt,
    Hypercall,
    HypervHcall,
    HypervSynic,
    InternalError,
    Interrupted,
    IoapicEoi,
    IoIn,
    IoOut,
    IrqWindowOpen,
    MmioRead,
    MmioWrite,
    Rdmsr,
    Shutdown,
    SystemEvent,
    TprAccess,
    Unknown,
    Wrmsr,
)
from pyvmm.kvm.handle import KvmError
from pyvmm.kvm.irq import IrqRoute, pc_routes
from pyvmm.kvm.msr_filter import MsrRange
from pyvmm.kvm.state import Translation
from pyvmm.kvm.structs import Regs, Segment, Sregs
from pyvmm.kvm.system import Kvm
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.kvm.vm import Vm

__all__ = [
    "Cap",
    "CoalescedWrite",
    "CpuidEntry",
    "Debug",
    "Exit",
    "FailEntry",
    "GuestDebugFlag",
    "Hlt",
    "Hypercall",
    "HypervExit",
    "HypervHcall",
    "HypervSynic",
    "InternalError",
    "Interrupted",
    "IoIn",
    "IoOut",
    "IoapicEoi",
    "IrqRoute",
    "IrqWindowOpen",
    "IrqchipId",
    "Kvm",
    "KvmError",
    "MmioRead",
    "MmioWrite",
    "MpState",
    "MsrExitReason",
    "MsrRange",
    "Rdmsr",
    "Regs",
    "Segment",
    "Shutdown",
    "Sregs",
    "SyncReg",
    "SystemEvent",
    "SystemEventType",
    "TprAccess",
    "Translation",
    "Unknown",
    "Vcpu",
    "Vm",
    "Wrmsr",
    "pc_routes",
]
