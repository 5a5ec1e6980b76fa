"""The Hyper-V state that KVM holds of a virtual processor, saved and restored by its MSRs.

Source: Linux arch/x86/kvm/hyperv.c, kvm_hv_set_msr() for writes that come from user space ("host").

KVM's list of MSRs names only some of these. What a write from user space does, and what it does not:

    GUEST_OS_ID       before HYPERCALL, which KVM leaves disabled while it is 0
    HYPERCALL         writes KVM's code into the page: its bytes are restored afterwards, as ours may be there
    VP_ASSIST_PAGE    writes zeros to its first four bytes: restored likewise
    REFERENCE_TSC     KVM fills in the page at the next entry, for the new VM's clock
    SIMP, SIEFP       no page is zeroed, no exit is caused
    STIMERn           COUNT before CONFIG, whose `enable` starts the timer
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pyvmm.errors import GuestMemoryError
from pyvmm.hyperv.tlfs import SINT_RESET, Msr, PageMsr
from pyvmm.kvm import Vcpu
from pyvmm.memory import PAGE_SIZE, GuestMemory

_SHARED: Final = (
    Msr.GUEST_OS_ID,
    Msr.HYPERCALL,
    Msr.REENLIGHTENMENT_CONTROL,
    Msr.TSC_EMULATION_CONTROL,
    Msr.TSC_EMULATION_STATUS,
    Msr.TSC_INVARIANT_CONTROL,
    Msr.REFERENCE_TSC,
)
"""MSRs of the whole partition, in the order in which they are restored."""

_OWN: Final = (
    Msr.VP_ASSIST_PAGE,
    Msr.SCONTROL,
    Msr.SIEFP,
    Msr.SIMP,
    *range(Msr.SINT0, Msr.SINT15 + 1),
    *(Msr.STIMER0_CONFIG + 2 * timer + 1 - part for timer in range(4) for part in range(2)),
)
"""MSRs of each virtual processor, in the order in which they are restored."""

_WRITTEN: Final = {Msr.HYPERCALL: PAGE_SIZE, Msr.VP_ASSIST_PAGE: 4}
"""Bytes of the page behind an MSR that KVM overwrites when the MSR is set."""


@dataclass(frozen=True, slots=True)
class SavedVp:
    """MSRs that differ from their reset value, in the order of restoring, and the bytes by gpa that restoring them
    overwrites.
    """

    msrs: dict[int, int]
    pages: dict[int, bytes]


def save_vp(vcpu: Vcpu, vp: int, memory: GuestMemory) -> SavedVp:
    """Save the state of a virtual processor; the partition's belongs to the first. Raises HostError."""
    wanted = [*(_SHARED if vp == 0 else ()), *_OWN]
    found = vcpu.get_msrs(wanted, skip_unreadable=True)
    msrs = {msr: found[msr] for msr in wanted if found.get(msr) not in (None, 0, SINT_RESET)}
    pages = {}
    for msr, length in _WRITTEN.items():
        page = PageMsr(msrs.get(msr, 0))
        if page.enable:
            try:
                pages[page.gpa] = memory.read(page.gpa, length)
            except GuestMemoryError:
                continue  # not RAM: KVM wrote nothing there either
    return SavedVp(msrs, pages)


def restore_vp(vcpu: Vcpu, saved: SavedVp, memory: GuestMemory) -> None:
    """Restore the state into a new vCPU, whose SynIC is active. Raises HostError."""
    if saved.msrs:
        vcpu.set_msrs(saved.msrs)
    for gpa, data in saved.pages.items():
        memory.write(gpa, data)
