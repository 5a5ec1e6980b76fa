"""The numbers spoken between a VMM and /dev/kvm: requests, exit reasons, flags.

Source: Linux include/uapi/linux/kvm.h, include/uapi/asm-generic/ioctl.h.

An ioctl number packs direction, argument size, a driver's letter and the request:

    31 30 29        16 15         8 7        0
    | dir |    size   | type 0xAE  | request |

The direction is sometimes odd (KVM_SET_IRQCHIP reads, KVM_GET_DIRTY_LOG writes): what counts is the number.
"""

from __future__ import annotations

from ctypes import Structure, sizeof
from enum import IntEnum, IntFlag, unique
from typing import Final

from pyvmm.kvm import structs as s

API_VERSION: Final = 12
KVMIO: Final = 0xAE
PAGE_SIZE: Final = 4096

_WRITE, _READ = 1, 2
_MSR_LIST_HEAD, _CPUID_HEAD, _MSRS_HEAD, _ROUTING_HEAD, _SIGNAL_MASK_HEAD = 4, 8, 8, 8, 4
_U64_SIZE, _XSAVE_SIZE = 8, 4096


def _number(direction: int, request: int, size: int) -> int:
    return direction << 30 | size << 16 | KVMIO << 8 | request


def _size(what: type[Structure] | int) -> int:
    return what if isinstance(what, int) else sizeof(what)


def _io(request: int) -> int:
    return _number(0, request, 0)


def _iow(request: int, what: type[Structure] | int) -> int:
    return _number(_WRITE, request, _size(what))


def _ior(request: int, what: type[Structure] | int) -> int:
    return _number(_READ, request, _size(what))


def _iowr(request: int, what: type[Structure] | int) -> int:
    return _number(_READ | _WRITE, request, _size(what))


@unique
class Op(IntEnum):
    """KVM_* requests; the member names are the kernel's without KVM_."""

    # on /dev/kvm
    GET_API_VERSION = _io(0x00)
    CREATE_VM = _io(0x01)
    GET_MSR_INDEX_LIST = _iowr(0x02, _MSR_LIST_HEAD)
    CHECK_EXTENSION = _io(0x03)  # on a VM too
    GET_VCPU_MMAP_SIZE = _io(0x04)
    GET_SUPPORTED_CPUID = _iowr(0x05, _CPUID_HEAD)
    GET_MSR_FEATURE_INDEX_LIST = _iowr(0x0A, _MSR_LIST_HEAD)
    GET_SUPPORTED_HV_CPUID = _iowr(0xC1, _CPUID_HEAD)  # on a vCPU too

    # on a VM
    CREATE_VCPU = _io(0x41)
    GET_DIRTY_LOG = _iow(0x42, s.DirtyLog)
    SET_USER_MEMORY_REGION = _iow(0x46, s.UserspaceMemoryRegion)
    SET_TSS_ADDR = _io(0x47)
    SET_IDENTITY_MAP_ADDR = _iow(0x48, _U64_SIZE)
    CREATE_IRQCHIP = _io(0x60)
    IRQ_LINE = _iow(0x61, s.IrqLevel)
    GET_IRQCHIP = _iowr(0x62, s.Irqchip)
    SET_IRQCHIP = _ior(0x63, s.Irqchip)
    IRQ_LINE_STATUS = _iowr(0x67, s.IrqLevel)
    REGISTER_COALESCED_MMIO = _iow(0x67, s.CoalescedZone)
    UNREGISTER_COALESCED_MMIO = _iow(0x68, s.CoalescedZone)
    SET_GSI_ROUTING = _iow(0x6A, _ROUTING_HEAD)
    IRQFD = _iow(0x76, s.Irqfd)
    CREATE_PIT2 = _iow(0x77, s.PitConfig)
    SET_BOOT_CPU_ID = _io(0x78)
    IOEVENTFD = _iow(0x79, s.Ioeventfd)
    SET_CLOCK = _iow(0x7B, s.ClockData)
    GET_CLOCK = _ior(0x7C, s.ClockData)
    GET_PIT2 = _ior(0x9F, s.PitState2)
    SET_PIT2 = _iow(0xA0, s.PitState2)
    ENABLE_CAP = _iow(0xA3, s.EnableCap)  # on a vCPU too
    SIGNAL_MSI = _iow(0xA5, s.Msi)
    HYPERV_EVENTFD = _iow(0xBD, s.HypervEventfd)
    X86_SET_MSR_FILTER = _iow(0xC6, s.MsrFilterStruct)

    # on a vCPU
    RUN = _io(0x80)
    GET_REGS = _ior(0x81, s.Regs)
    SET_REGS = _iow(0x82, s.Regs)
    GET_SREGS = _ior(0x83, s.Sregs)
    SET_SREGS = _iow(0x84, s.Sregs)
    TRANSLATE = _iowr(0x85, s.TranslationStruct)
    INTERRUPT = _iow(0x86, s.Interrupt)
    GET_MSRS = _iowr(0x88, _MSRS_HEAD)  # on /dev/kvm too, for feature MSRs
    SET_MSRS = _iow(0x89, _MSRS_HEAD)
    SET_SIGNAL_MASK = _iow(0x8B, _SIGNAL_MASK_HEAD)
    GET_FPU = _ior(0x8C, s.Fpu)
    SET_FPU = _iow(0x8D, s.Fpu)
    GET_LAPIC = _ior(0x8E, s.LapicState)
    SET_LAPIC = _iow(0x8F, s.LapicState)
    SET_CPUID2 = _iow(0x90, _CPUID_HEAD)
    GET_CPUID2 = _iowr(0x91, _CPUID_HEAD)
    GET_MP_STATE = _ior(0x98, s.MpStateStruct)
    SET_MP_STATE = _iow(0x99, s.MpStateStruct)
    NMI = _io(0x9A)
    SET_GUEST_DEBUG = _iow(0x9B, s.GuestDebug)
    GET_VCPU_EVENTS = _ior(0x9F, s.VcpuEvents)
    SET_VCPU_EVENTS = _iow(0xA0, s.VcpuEvents)
    GET_DEBUGREGS = _ior(0xA1, s.DebugRegs)
    SET_DEBUGREGS = _iow(0xA2, s.DebugRegs)
    SET_TSC_KHZ = _io(0xA2)
    GET_TSC_KHZ = _io(0xA3)
    GET_XSAVE = _ior(0xA4, _XSAVE_SIZE)
    SET_XSAVE = _iow(0xA5, _XSAVE_SIZE)
    GET_XCRS = _ior(0xA6, s.Xcrs)
    SET_XCRS = _iow(0xA7, s.Xcrs)
    KVMCLOCK_CTRL = _io(0xAD)
    GET_XSAVE2 = _ior(0xCF, _XSAVE_SIZE)
    SET_DEVICE_ATTR = _iow(0xE1, s.DeviceAttr)
    GET_DEVICE_ATTR = _iow(0xE2, s.DeviceAttr)
    HAS_DEVICE_ATTR = _iow(0xE3, s.DeviceAttr)


class ExitReason(IntEnum):
    """KVM_EXIT_*: why KVM_RUN came back, in kvm_run.exit_reason.

    Source: KVM API 5 (The kvm_run structure); Linux include/uapi/linux/kvm.h.
    """

    UNKNOWN = 0  # The CPU left the guest for a reason that KVM does not know.
    EXCEPTION = 1  # Not used any more.
    IO = 2  # The guest accesses an I/O port (IN, OUT) that no eventfd takes.
    HYPERCALL = 3  # A KVM hypercall for user space (VMCALL), if enabled by KVM_CAP_EXIT_HYPERCALL.
    DEBUG = 4  # A breakpoint or single step of KVM_SET_GUEST_DEBUG.
    HLT = 5  # The guest halted, in a VM without in-kernel APIC.
    MMIO = 6  # The guest accesses an address where no memory is.
    IRQ_WINDOW_OPEN = 7  # The guest can take an interrupt, as requested.
    SHUTDOWN = 8  # Triple fault: a PC resets.
    FAIL_ENTRY = 9  # The CPU refused to enter the guest: its state is invalid.
    INTR = 10  # A signal for the vCPU's thread.
    SET_TPR = 11  # The guest lowered its task priority, without in-kernel APIC.
    TPR_ACCESS = 12  # The guest accesses its task priority, where reporting is on.
    NMI = 16  # Not used on x86.
    INTERNAL_ERROR = 17  # KVM cannot go on: mostly an instruction that it cannot emulate.
    WATCHDOG = 21  # A watchdog of the CPU (PowerPC).
    SYSTEM_EVENT = 24  # The guest asks for shutdown, reset or crash handling; on x86 by the Hyper-V MSRs.
    IOAPIC_EOI = 26  # The EOI of a level interrupt of a user-space I/O APIC (split irqchip).
    HYPERV = 27  # The guest wrote a SynIC register, or made a hypercall for user space.
    X86_RDMSR = 29  # The guest reads an MSR that KVM leaves to user space.
    X86_WRMSR = 30  # The guest writes an MSR that KVM leaves to user space.
    DIRTY_RING_FULL = 31  # The ring of dirty pages must be emptied.
    AP_RESET_HOLD = 32  # An SEV-ES guest's second CPU waits for its start.
    X86_BUS_LOCK = 33  # The guest locked the bus, where that is reported.
    XEN = 34  # A hypercall of a Xen guest.
    NOTIFY = 37  # The guest let no interrupt window open for too long.


class HypervExit(IntEnum):
    """KVM_EXIT_HYPERV_*: the kinds of a Hyper-V exit.

    Source: KVM API 5 (KVM_EXIT_HYPERV); Linux include/uapi/linux/kvm.h.
    """

    SYNIC = 1  # The guest wrote SCONTROL, SIEFP or SIMP.
    HCALL = 2  # HvCallPostMessage, HvCallSignalEvent, or a call that KVM leaves to user space.
    SYNDBG = 3  # The synthetic debugger's registers.


class SystemEventType(IntEnum):
    """KVM_SYSTEM_EVENT_*."""

    SHUTDOWN = 1  # Power off.
    RESET = 2  # Reset.
    CRASH = 3  # The guest panicked; KVM_CAP_HYPERV: by CRASH_CTL.
    WAKEUP = 4  # An interrupt wakes the vCPU.
    SUSPEND = 5  # Suspend to RAM.
    SEV_TERM = 6  # An SEV guest ends itself.


class MsrExitReason(IntFlag):
    """KVM_MSR_EXIT_REASON_*: which MSR accesses leave to user space; the argument of X86_USER_SPACE_MSR."""

    INVAL = 1
    UNKNOWN = 2
    FILTER = 4


class MpState(IntEnum):
    """KVM_MP_STATE_*: what a vCPU waits for."""

    RUNNABLE = 0
    UNINITIALIZED = 1
    INIT_RECEIVED = 2
    HALTED = 3
    SIPI_RECEIVED = 4


class IrqchipId(IntEnum):
    """KVM_IRQCHIP_*: the interrupt controllers of the full in-kernel irqchip.

    Source: KVM API 4.26 (KVM_GET_IRQCHIP); Linux arch/x86/include/uapi/asm/kvm.h.
    """

    PIC_MASTER = 0
    PIC_SLAVE = 1
    IOAPIC = 2


class RouteType(IntEnum):
    """KVM_IRQ_ROUTING_*."""

    IRQCHIP = 1
    MSI = 2
    HV_SINT = 4


class GuestDebugFlag(IntFlag):
    """KVM_GUESTDBG_*."""

    ENABLE = 0x00001
    SINGLESTEP = 0x00002
    USE_SW_BP = 0x10000
    USE_HW_BP = 0x20000
    INJECT_DB = 0x40000
    INJECT_BP = 0x80000
    BLOCKIRQ = 0x100000


class SyncReg(IntFlag):
    """KVM_SYNC_X86_*: register classes shared through kvm_run."""

    REGS = 1
    SREGS = 2
    EVENTS = 4


MEM_LOG_DIRTY_PAGES: Final = 1
MEM_READONLY: Final = 2
PIT_SPEAKER_DUMMY: Final = 1
IRQFD_DEASSIGN: Final = 1
IRQFD_RESAMPLE: Final = 2
IOEVENTFD_DATAMATCH: Final = 1
IOEVENTFD_PIO: Final = 2
IOEVENTFD_DEASSIGN: Final = 4
HYPERV_EVENTFD_DEASSIGN: Final = 1
HYPERV_CONN_ID_MASK: Final = 0x00FFFFFF
CPUID_FLAG_SIGNIFICANT_INDEX: Final = 1
VCPU_TSC_CTRL: Final = 0  # a group of a vCPU's attributes
VCPU_TSC_OFFSET: Final = 0
MSR_FILTER_READ: Final = 1
MSR_FILTER_WRITE: Final = 2
MSR_FILTER_DEFAULT_DENY: Final = 1
MSR_FILTER_MAX_RANGES: Final = 16
MSR_FILTER_MAX_BITMAP_SIZE: Final = 0x600

# struct kvm_run: offsets of what the library touches.
RUN_REQUEST_INTERRUPT_WINDOW: Final = 0
RUN_IMMEDIATE_EXIT: Final = 1
RUN_EXIT_REASON: Final = 8
RUN_READY_FOR_INTERRUPT_INJECTION: Final = 12
RUN_IF_FLAG: Final = 13
RUN_CR8: Final = 16
RUN_APIC_BASE: Final = 24
RUN_EXIT: Final = 32  # the union of exit data
RUN_VALID_REGS: Final = 288
RUN_DIRTY_REGS: Final = 296
RUN_SYNC_REGS: Final = 304

# struct kvm_coalesced_mmio_ring: two indices, then entries up to the end of the page.
RING_HEAD_SIZE: Final = 8
RING_ENTRIES: Final = (PAGE_SIZE - RING_HEAD_SIZE) // sizeof(s.CoalescedEntry)
