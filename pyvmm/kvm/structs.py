"""The structures that cross the boundary to KVM, as ctypes lays them out.

Source: Linux include/uapi/linux/kvm.h and arch/x86/include/uapi/asm/kvm.h, struct kvm_*.
tests/unit/kvm/test_abi.py compares every size and offset with the kernel's headers through a C compiler.
Structures that end in an array of any length (MSRs, CPUID entries, routes) have only their head here; the
arrays are packed with `struct` where they are used.
"""

from __future__ import annotations

from ctypes import Array, Structure, Union, c_int32, c_int64, c_uint8, c_uint16, c_uint32, c_uint64
from typing import ClassVar

u8, u16, u32, u64, s32, s64 = c_uint8, c_uint16, c_uint32, c_uint64, c_int32, c_int64


class KvmStruct(Structure):
    """A kernel structure that prints its fields."""

    def __repr__(self) -> str:
        fields = " ".join(_field(name, getattr(self, name)) for name, *_ in self._fields_)
        return f"<{type(self).__name__} {fields}>"


def _field(name: str, value: object) -> str:
    if isinstance(value, int):
        return f"{name}={value:#x}"
    return f"{name}={list(value)!r}" if isinstance(value, Array) else f"{name}={value!r}"


class UserspaceMemoryRegion(KvmStruct):
    """struct kvm_userspace_memory_region: a run of guest physical memory and where it is in this process."""

    _fields_: ClassVar = [
        ("slot", u32),
        ("flags", u32),
        ("guest_phys_addr", u64),
        ("memory_size", u64),
        ("userspace_addr", u64),
    ]


class DirtyLog(KvmStruct):
    """struct kvm_dirty_log: where KVM shall write one bit for each page of a slot."""

    _fields_: ClassVar = [("slot", u32), ("padding1", u32), ("dirty_bitmap", u64)]


class Regs(KvmStruct):
    """struct kvm_regs: general registers, instruction pointer and flags."""

    _fields_: ClassVar = [
        (name, u64)
        for name in (
            [
                "rax",
                "rbx",
                "rcx",
                "rdx",
                "rsi",
                "rdi",
                "rsp",
                "rbp",
                "r8",
                "r9",
                "r10",
                "r11",
                "r12",
                "r13",
                "r14",
                "r15",
                "rip",
                "rflags",
            ]  # kernel order
        )
    ]


class Segment(KvmStruct):
    """struct kvm_segment: a segment register with its hidden part."""

    _fields_: ClassVar = [
        ("base", u64),
        ("limit", u32),
        ("selector", u16),
        ("type", u8),
        ("present", u8),
        ("dpl", u8),
        ("db", u8),
        ("s", u8),
        ("l", u8),
        ("g", u8),
        ("avl", u8),
        ("unusable", u8),
        ("padding", u8),
    ]


class Dtable(KvmStruct):
    """struct kvm_dtable: GDTR or IDTR."""

    _fields_: ClassVar = [("base", u64), ("limit", u16), ("padding", u16 * 3)]


class Sregs(KvmStruct):
    """struct kvm_sregs: segments, descriptor tables, control registers, EFER, APIC base."""

    _fields_: ClassVar = [
        *[(name, Segment) for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")],
        *[(name, Dtable) for name in ("gdt", "idt")],
        *[(name, u64) for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")],
        ("interrupt_bitmap", u64 * 4),
    ]


class Fpu(KvmStruct):
    """struct kvm_fpu: x87 and SSE registers."""

    _fields_: ClassVar = [
        ("fpr", (u8 * 16) * 8),
        ("fcw", u16),
        ("fsw", u16),
        ("ftwx", u8),
        ("pad1", u8),
        ("last_opcode", u16),
        ("last_ip", u64),
        ("last_dp", u64),
        ("xmm", (u8 * 16) * 16),
        ("mxcsr", u32),
        ("pad2", u32),
    ]


class LapicState(KvmStruct):
    """struct kvm_lapic_state: the first KiB of the local APIC's register page."""

    _fields_: ClassVar = [("regs", u8 * 0x400)]


class Xcr(KvmStruct):
    """struct kvm_xcr: one extended control register."""

    _fields_: ClassVar = [("xcr", u32), ("reserved", u32), ("value", u64)]


class Xcrs(KvmStruct):
    """struct kvm_xcrs: extended control registers, XCR0 first."""

    _fields_: ClassVar = [("nr_xcrs", u32), ("flags", u32), ("xcrs", Xcr * 16), ("padding", u64 * 16)]


class ExceptionEvent(KvmStruct):
    """The exception part of struct kvm_vcpu_events."""

    _fields_: ClassVar = [
        ("injected", u8),
        ("nr", u8),
        ("has_error_code", u8),
        ("pending", u8),
        ("error_code", u32),
    ]


class InterruptEvent(KvmStruct):
    """The interrupt part of struct kvm_vcpu_events."""

    _fields_: ClassVar = [("injected", u8), ("nr", u8), ("soft", u8), ("shadow", u8)]


class NmiEvent(KvmStruct):
    """The NMI part of struct kvm_vcpu_events."""

    _fields_: ClassVar = [("injected", u8), ("pending", u8), ("masked", u8), ("pad", u8)]


class SmiEvent(KvmStruct):
    """The system-management part of struct kvm_vcpu_events."""

    _fields_: ClassVar = [("smm", u8), ("pending", u8), ("smm_inside_nmi", u8), ("latched_init", u8)]


class VcpuEvents(KvmStruct):
    """struct kvm_vcpu_events: what is about to be delivered to the vCPU."""

    _fields_: ClassVar = [
        ("exception", ExceptionEvent),
        ("interrupt", InterruptEvent),
        ("nmi", NmiEvent),
        ("sipi_vector", u32),
        ("flags", u32),
        ("smi", SmiEvent),
        ("triple_fault_pending", u8),
        ("reserved", u8 * 26),
        ("exception_has_payload", u8),
        ("exception_payload", u64),
    ]


class SyncRegsArea(KvmStruct):
    """struct kvm_sync_regs: the registers shared through struct kvm_run."""

    _fields_: ClassVar = [("regs", Regs), ("sregs", Sregs), ("events", VcpuEvents)]


class DebugRegs(KvmStruct):
    """struct kvm_debugregs: DR0-3, DR6, DR7."""

    _fields_: ClassVar = [("db", u64 * 4), ("dr6", u64), ("dr7", u64), ("flags", u64), ("reserved", u64 * 9)]


class GuestDebug(KvmStruct):
    """struct kvm_guest_debug: single step and breakpoints set by the host."""

    _fields_: ClassVar = [("control", u32), ("pad", u32), ("debugreg", u64 * 8)]


class MpStateStruct(KvmStruct):
    """struct kvm_mp_state: whether the vCPU runs, halts or waits for its start."""

    _fields_: ClassVar = [("mp_state", u32)]


class TranslationStruct(KvmStruct):
    """struct kvm_translation: a guest virtual address and what it means."""

    _fields_: ClassVar = [
        ("linear_address", u64),
        ("physical_address", u64),
        ("valid", u8),
        ("writeable", u8),
        ("usermode", u8),
        ("pad", u8 * 5),
    ]


class Interrupt(KvmStruct):
    """struct kvm_interrupt: a vector injected where there is no in-kernel APIC."""

    _fields_: ClassVar = [("irq", u32)]


class DeviceAttr(KvmStruct):
    """struct kvm_device_attr: an attribute of a vCPU or device, whose value is at `addr` in this process."""

    _fields_: ClassVar = [("flags", u32), ("group", u32), ("attr", u64), ("addr", u64)]


class EnableCap(KvmStruct):
    """struct kvm_enable_cap: a capability to turn on, with its arguments."""

    _fields_: ClassVar = [("cap", u32), ("flags", u32), ("args", u64 * 4), ("pad", u8 * 64)]


class IrqLevel(KvmStruct):
    """struct kvm_irq_level: an interrupt line and its level; `irq` becomes the status on the way back."""

    _fields_: ClassVar = [("irq", u32), ("level", u32)]


class PicState(KvmStruct):
    """struct kvm_pic_state: one of the two 8259s."""

    _fields_: ClassVar = [
        (name, u8)
        for name in [
            "last_irr",
            "irr",
            "imr",
            "isr",
            "priority_add",
            "irq_base",
            "read_reg_select",
            "poll",
            "special_mask",
            "init_state",
            "auto_eoi",
            "rotate_on_auto_eoi",
            "special_fully_nested_mode",
            "init4",
            "elcr",
            "elcr_mask",
        ]
    ]


class IoapicState(KvmStruct):
    """struct kvm_ioapic_state: the I/O APIC; a redirection entry is one 64-bit word."""

    _fields_: ClassVar = [
        ("base_address", u64),
        ("ioregsel", u32),
        ("id", u32),
        ("irr", u32),
        ("pad", u32),
        ("redirtbl", u64 * 24),
    ]


class IrqchipUnion(Union):
    """The union in struct kvm_irqchip; which member counts depends on `chip_id`."""

    _fields_: ClassVar = [("dummy", u8 * 512), ("pic", PicState), ("ioapic", IoapicState)]


class Irqchip(KvmStruct):
    """struct kvm_irqchip: state of one in-kernel interrupt controller."""

    _fields_: ClassVar = [("chip_id", u32), ("pad", u32), ("chip", IrqchipUnion)]


class PitConfig(KvmStruct):
    """struct kvm_pit_config: flags of the in-kernel PIT."""

    _fields_: ClassVar = [("flags", u32), ("pad", u32 * 15)]


class PitChannelState(KvmStruct):
    """struct kvm_pit_channel_state: one of the PIT's three counters."""

    _fields_: ClassVar = [
        ("count", u32),
        ("latched_count", u16),
        *[
            (name, u8)
            for name in [
                "count_latched",
                "status_latched",
                "status",
                "read_state",
                "write_state",
                "write_latch",
                "rw_mode",
                "mode",
                "bcd",
                "gate",
            ]
        ],
        ("count_load_time", s64),
    ]


class PitState2(KvmStruct):
    """struct kvm_pit_state2: the in-kernel PIT."""

    _fields_: ClassVar = [("channels", PitChannelState * 3), ("flags", u32), ("reserved", u32 * 9)]


class Irqfd(KvmStruct):
    """struct kvm_irqfd: an eventfd that raises an interrupt line."""

    _fields_: ClassVar = [("fd", u32), ("gsi", u32), ("flags", u32), ("resamplefd", u32), ("pad", u8 * 16)]


class Ioeventfd(KvmStruct):
    """struct kvm_ioeventfd: an eventfd that is signalled by a guest write."""

    _fields_: ClassVar = [
        ("datamatch", u64),
        ("addr", u64),
        ("len", u32),
        ("fd", s32),
        ("flags", u32),
        ("pad", u8 * 36),
    ]


class CoalescedZone(KvmStruct):
    """struct kvm_coalesced_mmio_zone: addresses whose writes are queued instead of leaving the guest."""

    _fields_: ClassVar = [("addr", u64), ("size", u32), ("pio", u32)]


class CoalescedEntry(KvmStruct):
    """struct kvm_coalesced_mmio: one queued write."""

    _fields_: ClassVar = [("phys_addr", u64), ("len", u32), ("pio", u32), ("data", u8 * 8)]


class Msi(KvmStruct):
    """struct kvm_msi: a message-signalled interrupt."""

    _fields_: ClassVar = [
        ("address_lo", u32),
        ("address_hi", u32),
        ("data", u32),
        ("flags", u32),
        ("devid", u32),
        ("pad", u8 * 12),
    ]


class ClockData(KvmStruct):
    """struct kvm_clock_data: the VM's clock in nanoseconds."""

    _fields_: ClassVar = [
        ("clock", u64),
        ("flags", u32),
        ("pad0", u32),
        ("realtime", u64),
        ("host_tsc", u64),
        ("pad", u32 * 4),
    ]


class MsrFilterRangeStruct(KvmStruct):
    """struct kvm_msr_filter_range: a run of MSRs with a bit for each, 1 = allowed."""

    _fields_: ClassVar = [("flags", u32), ("nmsrs", u32), ("base", u32), ("bitmap", u64)]


class MsrFilterStruct(KvmStruct):
    """struct kvm_msr_filter: up to sixteen ranges and what holds outside of them."""

    _fields_: ClassVar = [("flags", u32), ("ranges", MsrFilterRangeStruct * 16)]


class HypervEventfd(KvmStruct):
    """struct kvm_hyperv_eventfd: an eventfd for a Hyper-V connection id."""

    _fields_: ClassVar = [("conn_id", u32), ("fd", s32), ("flags", u32), ("padding", u32 * 3)]
