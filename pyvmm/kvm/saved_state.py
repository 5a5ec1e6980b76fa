"""The state that KVM holds of a VM, saved as plain objects and restored into a new VM: for a guest that is forked.

Source: Linux Documentation/virt/kvm/api.rst; arch/x86/kvm/x86.c, lapic.c; tools/testing/selftests/kvm, state_test.

Nothing can be read after a fork: KVM answers EIO to a process other than the one that made the VM. So the state is
saved before, and a new VM is made in the child, with memory, chips, vCPUs and their CPUID as in the old one. Then:

    special registers, extended state, debug registers, registers, events (after registers, which clear exceptions)
    TSC offset, VM clock            from here on the guest's clocks run
    local APIC                      after the special registers, which hold its mode; it starts its timer
    `between`                       the Hyper-V engine's MSRs: KVM writes the reference page for the new clock
    other MSRs                      those that differ from a fresh vCPU's: others may be read-only
    interrupt controllers, PIT
    TSC_DEADLINE                    last: KVM ignores it before the APIC's timer is in its mode

Not saved, because pyvmm's guests have none: nested guests, system management mode, performance counters, Xen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from pyvmm.errors import HostError
from pyvmm.kvm import structs
from pyvmm.kvm.abi import IrqchipId, MpState
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.kvm.vm import Vm

TSC: Final = 0x10
APIC_BASE: Final = 0x1B
TSC_DEADLINE: Final = 0x6E0
MTRRS: Final = (*range(0x200, 0x210), 0x250, 0x258, 0x259, *range(0x268, 0x270), 0x2FF)
"""Memory type registers, which KVM has but leaves out of its list before Linux 6.10."""
_APART: Final = frozenset((TSC, APIC_BASE, TSC_DEADLINE))  # the first by its offset, the second in special registers
_HYPERV: Final = range(0x40000000, 0x40000200)  # the Hyper-V engine's own affair
_WORD: Final = (1 << 64) - 1
_FAR_SECONDS: Final = 10


@dataclass(slots=True)
class SavedVcpu:
    """The state of one vCPU. `xsave` is None on a host without XSAVE, `fpu` on one with it."""

    mp_state: MpState
    sregs: structs.Sregs
    lapic: structs.LapicState
    xcrs: structs.Xcrs
    xsave: bytes | None
    fpu: structs.Fpu | None
    debugregs: structs.DebugRegs
    regs: structs.Regs
    events: structs.VcpuEvents
    msrs: dict[int, int]
    deadline: int
    tsc: int
    tsc_offset: int | None
    refused: list[int] = field(default_factory=list)
    """MSRs with a value of their own that KVM does not let a new vCPU have: left out."""


@dataclass(slots=True)
class SavedVm:
    """The state of a VM. `host_tsc` and `clock` are those of the moment at which it was saved: `save_vm`."""

    vcpus: list[SavedVcpu]
    host_tsc: int
    clock: int
    chips: list[structs.Irqchip]
    pit: structs.PitState2


def save_vm(vm: Vm, msrs: Iterable[int]) -> SavedVm:
    """Save the state of a VM with in-kernel irqchip and PIT, none of whose vCPUs runs or has an exit half done.

    TSC and clock are read first. `msrs` are KVM's (`Kvm.msr_index_list`). Raises HostError.
    """
    offsets = [vcpu.tsc_offset for vcpu in vm.vcpus]
    counts = [vcpu.get_msrs([TSC])[TSC] for vcpu in vm.vcpus]
    clock = int(vm.get_clock().clock)
    indices = [msr for msr in {*msrs, *MTRRS} - _APART if msr not in _HYPERV]
    vcpus = [
        _save_vcpu(vcpu, sorted(indices), tsc, offset)
        for vcpu, tsc, offset in zip(vm.vcpus, counts, offsets, strict=True)
    ]
    host_tsc = (counts[0] - (offsets[0] or 0)) & _WORD
    return SavedVm(vcpus, host_tsc, clock, [vm.get_irqchip(chip) for chip in IrqchipId], vm.get_pit())


def _save_vcpu(vcpu: Vcpu, msrs: Sequence[int], tsc: int, offset: int | None) -> SavedVcpu:
    mp_state = vcpu.mp_state  # first: KVM handles a pending INIT or SIPI here, which changes registers
    xcrs = vcpu.xcrs
    return SavedVcpu(
        mp_state=mp_state,
        sregs=vcpu.sregs,
        lapic=vcpu.get_lapic(),
        xcrs=xcrs,
        xsave=vcpu.xsave if xcrs.nr_xcrs else None,
        fpu=None if xcrs.nr_xcrs else vcpu.fpu,
        debugregs=vcpu.debugregs,
        regs=vcpu.regs,
        events=vcpu.events,
        msrs=vcpu.get_msrs(msrs, skip_unreadable=True),
        deadline=vcpu.get_msrs([TSC_DEADLINE], skip_unreadable=True).get(TSC_DEADLINE, 0),
        tsc=tsc,
        tsc_offset=offset,
    )


def keep_differing(saved: SavedVm, fresh: Vm) -> None:
    """Reduce the MSRs to those that need restoring. `fresh` is a VM as `restore_vm` will get it; it is used up."""
    for state, vcpu in zip(saved.vcpus, fresh.vcpus, strict=True):
        before = vcpu.get_msrs(state.msrs, skip_unreadable=True)
        wanted, state.msrs = state.msrs, {}
        for msr, value in wanted.items():
            if before.get(msr, 0) == value:
                continue
            try:
                vcpu.set_msrs({msr: value})
            except HostError:
                state.refused.append(msr)
            else:
                state.msrs[msr] = value


def restore_vm(
    vm: Vm,
    saved: SavedVm,
    *,
    start_clocks: Callable[[], None] = lambda: None,
    between: Callable[[Vcpu, int], None] = lambda vcpu, index: None,
) -> None:
    """Restore a state into a new VM that was set up like the old one. The guest's clocks go on as if no time passed.

    `start_clocks()` is called at the moment when they do; `between(vcpu, index)` see above. Raises HostError.
    """
    pairs = list(zip(vm.vcpus, saved.vcpus, strict=True))
    for vcpu, state in pairs:
        vcpu.sregs = state.sregs
        if state.xsave is not None:
            vcpu.xcrs = state.xcrs
            vcpu.xsave = state.xsave
        if state.fpu is not None:
            vcpu.fpu = state.fpu
        vcpu.debugregs = state.debugregs
        vcpu.regs = state.regs
        vcpu.events = state.events
        vcpu.mp_state = state.mp_state
    _restore_clocks(vm, saved, start_clocks)
    for index, (vcpu, state) in enumerate(pairs):
        vcpu.set_lapic(state.lapic)
        between(vcpu, index)
        if state.msrs:
            vcpu.set_msrs(state.msrs)
    for chip in saved.chips:
        vm.set_irqchip(chip)
    vm.set_pit(saved.pit)
    for vcpu, state in pairs:
        if state.deadline:
            vcpu.set_msrs({TSC_DEADLINE: state.deadline})


def _restore_clocks(vm: Vm, saved: SavedVm, start: Callable[[], None]) -> None:
    first = vm.vcpus[0]
    offset = first.tsc_offset
    if offset is None or saved.vcpus[0].tsc_offset is None:
        start()
        # KVM takes a value within a second of its own count for that count, so write one far off before.
        first.set_msrs({TSC: (saved.vcpus[0].tsc + _FAR_SECONDS * first.tsc_khz * 1000) & _WORD})
        for vcpu, state in zip(vm.vcpus, saved.vcpus, strict=True):
            vcpu.set_msrs({TSC: state.tsc})
    else:
        host_tsc = first.get_msrs([TSC])[TSC] - offset
        start()
        passed = host_tsc - saved.host_tsc
        for vcpu, state in zip(vm.vcpus, saved.vcpus, strict=True):
            vcpu.tsc_offset = ((state.tsc_offset or 0) - passed) & _WORD
    vm.set_clock(saved.clock)
