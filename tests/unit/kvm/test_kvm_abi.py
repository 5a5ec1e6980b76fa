"""Numbers and layouts against the kernel's own headers, through a C compiler."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.kvm import abi, structs
from pyvmm.kvm.abi import ExitReason, Op
from pyvmm.kvm.caps import Cap

HEADER = Path("/usr/include/linux/kvm.h")

# Class, C type. Parts of other structures (ExceptionEvent, ...) are checked inside them.
KERNEL_NAME = {
    structs.UserspaceMemoryRegion: "kvm_userspace_memory_region",
    structs.DirtyLog: "kvm_dirty_log",
    structs.Regs: "kvm_regs",
    structs.Segment: "kvm_segment",
    structs.Dtable: "kvm_dtable",
    structs.Sregs: "kvm_sregs",
    structs.Fpu: "kvm_fpu",
    structs.LapicState: "kvm_lapic_state",
    structs.Xcr: "kvm_xcr",
    structs.Xcrs: "kvm_xcrs",
    structs.VcpuEvents: "kvm_vcpu_events",
    structs.SyncRegsArea: "kvm_sync_regs",
    structs.DebugRegs: "kvm_debugregs",
    structs.GuestDebug: "kvm_guest_debug",
    structs.MpStateStruct: "kvm_mp_state",
    structs.TranslationStruct: "kvm_translation",
    structs.Interrupt: "kvm_interrupt",
    structs.DeviceAttr: "kvm_device_attr",
    structs.EnableCap: "kvm_enable_cap",
    structs.IrqLevel: "kvm_irq_level",
    structs.PicState: "kvm_pic_state",
    structs.IoapicState: "kvm_ioapic_state",
    structs.Irqchip: "kvm_irqchip",
    structs.PitConfig: "kvm_pit_config",
    structs.PitChannelState: "kvm_pit_channel_state",
    structs.PitState2: "kvm_pit_state2",
    structs.Irqfd: "kvm_irqfd",
    structs.Ioeventfd: "kvm_ioeventfd",
    structs.CoalescedZone: "kvm_coalesced_mmio_zone",
    structs.CoalescedEntry: "kvm_coalesced_mmio",
    structs.Msi: "kvm_msi",
    structs.ClockData: "kvm_clock_data",
    structs.MsrFilterRangeStruct: "kvm_msr_filter_range",
    structs.MsrFilterStruct: "kvm_msr_filter",
    structs.HypervEventfd: "kvm_hyperv_eventfd",
}
PART_OF_OTHERS = {
    structs.KvmStruct,
    structs.ExceptionEvent,
    structs.InterruptEvent,
    structs.NmiEvent,
    structs.SmiEvent,
}
C_PATH = {
    (structs.VcpuEvents, "triple_fault_pending"): "triple_fault.pending",
    (structs.GuestDebug, "debugreg"): "arch.debugreg",
}

# Where the exit decoders read, as C expressions on struct kvm_run.
RUN_OFFSETS = {
    "request_interrupt_window": abi.RUN_REQUEST_INTERRUPT_WINDOW,
    "immediate_exit": abi.RUN_IMMEDIATE_EXIT,
    "exit_reason": abi.RUN_EXIT_REASON,
    "ready_for_interrupt_injection": abi.RUN_READY_FOR_INTERRUPT_INJECTION,
    "if_flag": abi.RUN_IF_FLAG,
    "cr8": abi.RUN_CR8,
    "apic_base": abi.RUN_APIC_BASE,
    "io.direction": 32,
    "io.size": 33,
    "io.port": 34,
    "io.count": 36,
    "io.data_offset": 40,
    "mmio.phys_addr": 32,
    "mmio.data": 40,
    "mmio.len": 48,
    "mmio.is_write": 52,
    "msr.error": 32,
    "msr.reason": 40,
    "msr.index": 44,
    "msr.data": 48,
    "fail_entry.hardware_entry_failure_reason": 32,
    "fail_entry.cpu": 40,
    "internal.suberror": 32,
    "internal.ndata": 36,
    "internal.data": 40,
    "emulation_failure.flags": 40,
    "emulation_failure.insn_size": 48,
    "emulation_failure.insn_bytes": 49,
    "system_event.type": 32,
    "system_event.ndata": 36,
    "system_event.data": 40,
    "debug.arch.exception": 32,
    "debug.arch.pc": 40,
    "debug.arch.dr6": 48,
    "debug.arch.dr7": 56,
    "hyperv.type": 32,
    "hyperv.u.synic.msr": 40,
    "hyperv.u.synic.control": 48,
    "hyperv.u.synic.evt_page": 56,
    "hyperv.u.synic.msg_page": 64,
    "hyperv.u.hcall.input": 40,
    "hyperv.u.hcall.result": 48,
    "hyperv.u.hcall.params": 56,
    "hypercall.nr": 32,
    "hypercall.args": 40,
    "hypercall.ret": 88,
    "hypercall.longmode": 96,
    "tpr_access.rip": 32,
    "tpr_access.is_write": 40,
    "eoi.vector": 32,
    "kvm_valid_regs": abi.RUN_VALID_REGS,
    "kvm_dirty_regs": abi.RUN_DIRTY_REGS,
    "s.regs": abi.RUN_SYNC_REGS,
}

MACROS = {
    "KVM_API_VERSION": abi.API_VERSION,
    "KVM_MEM_LOG_DIRTY_PAGES": abi.MEM_LOG_DIRTY_PAGES,
    "KVM_MEM_READONLY": abi.MEM_READONLY,
    "KVM_PIT_SPEAKER_DUMMY": abi.PIT_SPEAKER_DUMMY,
    "KVM_IRQFD_FLAG_DEASSIGN": abi.IRQFD_DEASSIGN,
    "KVM_IRQFD_FLAG_RESAMPLE": abi.IRQFD_RESAMPLE,
    "KVM_IOEVENTFD_FLAG_DATAMATCH": abi.IOEVENTFD_DATAMATCH,
    "KVM_IOEVENTFD_FLAG_PIO": abi.IOEVENTFD_PIO,
    "KVM_IOEVENTFD_FLAG_DEASSIGN": abi.IOEVENTFD_DEASSIGN,
    "KVM_VCPU_TSC_CTRL": abi.VCPU_TSC_CTRL,
    "KVM_VCPU_TSC_OFFSET": abi.VCPU_TSC_OFFSET,
    "KVM_HYPERV_EVENTFD_DEASSIGN": abi.HYPERV_EVENTFD_DEASSIGN,
    "KVM_HYPERV_CONN_ID_MASK": abi.HYPERV_CONN_ID_MASK,
    "KVM_CPUID_FLAG_SIGNIFCANT_INDEX": abi.CPUID_FLAG_SIGNIFICANT_INDEX,
    "KVM_MSR_FILTER_READ": abi.MSR_FILTER_READ,
    "KVM_MSR_FILTER_WRITE": abi.MSR_FILTER_WRITE,
    "KVM_MSR_FILTER_DEFAULT_DENY": abi.MSR_FILTER_DEFAULT_DENY,
    "KVM_MSR_FILTER_MAX_RANGES": abi.MSR_FILTER_MAX_RANGES,
    "KVM_MSR_FILTER_MAX_BITMAP_SIZE": abi.MSR_FILTER_MAX_BITMAP_SIZE,
    "SYNC_REGS_SIZE_BYTES": 2048,
    **{f"KVM_EXIT_{reason.name}": reason for reason in ExitReason},
    **{f"KVM_EXIT_HYPERV_{kind.name}": kind for kind in abi.HypervExit},
    **{f"KVM_SYSTEM_EVENT_{kind.name}": kind for kind in abi.SystemEventType},
    **{f"KVM_MSR_EXIT_REASON_{reason.name}": reason for reason in abi.MsrExitReason},
    **{f"KVM_MP_STATE_{state.name}": state for state in abi.MpState},
    **{f"KVM_IRQCHIP_{chip.name}": chip for chip in abi.IrqchipId},
    **{f"KVM_IRQ_ROUTING_{kind.name}": kind for kind in abi.RouteType},
    **{f"KVM_GUESTDBG_{flag.name}": flag for flag in abi.GuestDebugFlag},
    **{f"KVM_SYNC_X86_{kind.name}": kind for kind in abi.SyncReg},
    **{f"KVM_CAP_{cap.name}": cap for cap in Cap},
    **{f"KVM_{op.name}": op for op in Op},
}

SIZES = {
    "struct kvm_cpuid2": 8,
    "struct kvm_cpuid_entry2": 40,
    "struct kvm_msrs": 8,
    "struct kvm_msr_entry": 16,
    "struct kvm_msr_list": 4,
    "struct kvm_irq_routing": 8,
    "struct kvm_irq_routing_entry": 48,
    "struct kvm_coalesced_mmio_ring": abi.RING_HEAD_SIZE,
    **{f"struct {name}": ctypes.sizeof(cls) for cls, name in KERNEL_NAME.items()},
}


def layout() -> Iterator[tuple[str, int]]:
    """`offsetof(...)` expressions of all fields, nested ones too, and what ctypes says."""
    for cls, name in KERNEL_NAME.items():
        for path, offset in fields(cls):
            yield f"offsetof(struct {name}, {path})", offset


def fields(cls: type[ctypes.Structure | ctypes.Union]) -> Iterator[tuple[str, int]]:
    for name, kind in cls._fields_:
        path, offset = C_PATH.get((cls, name), name), getattr(cls, name).offset
        yield path, offset
        if issubclass(kind, ctypes.Structure | ctypes.Union):
            for inner, further in fields(kind):
                yield f"{path}.{inner}", offset + further


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int | None]:
    """What the C compiler says about each expression; None where the headers do not have the name."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (apt install gcc)")
    if not HEADER.exists():
        pytest.skip(f"no {HEADER} (apt install linux-libc-dev)")
    lines = ["#include <stdio.h>", "#include <stddef.h>", "#include <linux/kvm.h>", "int main(void) {"]
    for name in MACROS:
        lines += [f"#ifdef {name}", f'printf("{name}=%llu\\n", (unsigned long long){name});', "#endif"]
    expressions = [f"sizeof({name})" for name in SIZES]
    expressions += [expression for expression, _ in layout()]
    expressions += [f"offsetof(struct kvm_run, {path})" for path in RUN_OFFSETS]
    lines += [f'printf("{e}=%llu\\n", (unsigned long long){e});' for e in dict.fromkeys(expressions)]
    lines += ["return 0; }"]
    folder = tmp_path_factory.mktemp("abi")
    (folder / "abi.c").write_text("\n".join(lines))
    subprocess.run([compiler, "-O0", "-o", folder / "abi", folder / "abi.c"], check=True)
    output = subprocess.run([folder / "abi"], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.rsplit("=", 1) for line in output.splitlines())}


def test_every_number_is_the_kernels(kernel: dict[str, int]) -> None:
    known = {name: int(value) for name, value in MACROS.items() if name in kernel}
    assert known == {name: kernel[name] for name in known}


def test_headers_know_every_request_and_nearly_every_name(kernel: dict[str, int]) -> None:
    unknown = {name for name in MACROS if name not in kernel}
    newer_than_6_1 = {"KVM_CAP_USER_MEMORY2", "KVM_CAP_MEMORY_FAULT_INFO", "KVM_CAP_X86_APIC_BUS_CYCLES_NS"}
    assert unknown <= newer_than_6_1


def test_every_structure_has_the_kernels_size(kernel: dict[str, int]) -> None:
    assert {name: kernel[f"sizeof({name})"] for name in SIZES} == SIZES


def test_every_field_is_where_the_kernel_has_it(kernel: dict[str, int]) -> None:
    ours = dict(layout())
    assert {expression: kernel[expression] for expression in ours} == ours


def test_decoders_read_kvm_run_where_the_kernel_writes_it(kernel: dict[str, int]) -> None:
    theirs = {path: kernel[f"offsetof(struct kvm_run, {path})"] for path in RUN_OFFSETS}
    assert theirs == RUN_OFFSETS


def test_no_structure_is_left_unchecked() -> None:
    declared = {
        value for value in vars(structs).values() if isinstance(value, type) and issubclass(value, structs.KvmStruct)
    }
    assert declared == set(KERNEL_NAME) | PART_OF_OTHERS
