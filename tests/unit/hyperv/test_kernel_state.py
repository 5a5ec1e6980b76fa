"""The state of KVM's Hyper-V: what is saved, the order of restoring, and the pages that restoring overwrites."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pytest

from pyvmm.hyperv.kernel_state import restore_vp, save_vp
from pyvmm.hyperv.tlfs import SINT_RESET, Msr
from pyvmm.memory import PAGE_SIZE, GuestMemory

HYPERCALL, ASSIST = 0x3000, 0x5000
CODE = b"our own code".ljust(PAGE_SIZE, b"\xcc")


class Vcpu:
    """MSRs of a vCPU. As KVM does, it writes into the pages when their MSRs are set."""

    def __init__(self, memory: GuestMemory, msrs: dict[int, int] | None = None) -> None:
        self.memory = memory
        self.msrs = dict.fromkeys(range(Msr.SINT0, Msr.SINT15 + 1), SINT_RESET) | (msrs or {})
        self.written: list[int] = []

    def get_msrs(self, indices: Iterable[int], *, skip_unreadable: bool = False) -> dict[int, int]:
        return {
            msr: self.msrs.get(msr, 0) for msr in indices if msr != Msr.TSC_INVARIANT_CONTROL or not skip_unreadable
        }

    def set_msrs(self, values: Mapping[int, int]) -> None:
        for msr, value in values.items():
            self.written.append(msr)
            self.msrs[msr] = value
            if msr == Msr.HYPERCALL:
                self.memory.write(value & ~0xFFF, b"\x0f\x01\xc1\xc3")
            if msr == Msr.VP_ASSIST_PAGE:
                self.memory.write(value & ~0xFFF, bytes(4))


@pytest.fixture
def memory() -> GuestMemory:
    made = GuestMemory.flat(0x10000)
    made.write(HYPERCALL, CODE)
    made.write(ASSIST, b"abcd")
    return made


def test_all_is_restored_in_an_order_that_kvm_accepts(memory: GuestMemory) -> None:
    msrs = {
        Msr.GUEST_OS_ID: 1,
        Msr.HYPERCALL: HYPERCALL | 1,
        Msr.VP_ASSIST_PAGE: ASSIST | 1,
        Msr.REFERENCE_TSC: 0x4001,
        Msr.SCONTROL: 1,
        Msr.SIMP: 0x7001,
        Msr.SIEFP: 0x8001,
        Msr.SINT0 + 2: 0xF3,
        Msr.STIMER0_CONFIG: 9,
        Msr.STIMER0_COUNT: 1000,
    }
    saved = save_vp(Vcpu(memory, msrs), 0, memory)  # type: ignore[arg-type]
    new = Vcpu(memory)
    restore_vp(new, saved, memory)  # type: ignore[arg-type]
    assert {msr: new.msrs[msr] for msr in msrs} == msrs
    assert sorted(new.written) == sorted(msrs)
    assert new.written.index(Msr.GUEST_OS_ID) < new.written.index(Msr.HYPERCALL)
    assert new.written.index(Msr.STIMER0_COUNT) < new.written.index(Msr.STIMER0_CONFIG)
    assert (memory.read(HYPERCALL, PAGE_SIZE), memory.read(ASSIST, 4)) == (CODE, b"abcd")


def test_the_partitions_own_registers_are_the_first_processors(memory: GuestMemory) -> None:
    vcpu = Vcpu(memory, {Msr.GUEST_OS_ID: 1, Msr.HYPERCALL: HYPERCALL | 1, Msr.SIMP: 0x7001})
    saved = save_vp(vcpu, 1, memory)  # type: ignore[arg-type]
    assert (saved.msrs, saved.pages) == ({Msr.SIMP: 0x7001}, {})


def test_a_page_that_is_not_ram_is_left_alone(memory: GuestMemory) -> None:
    vcpu = Vcpu(memory, {Msr.GUEST_OS_ID: 1, Msr.HYPERCALL: 1 << 40 | 1})
    assert save_vp(vcpu, 0, memory).pages == {}  # type: ignore[arg-type]


def test_a_processor_at_power_on_has_nothing_to_save(memory: GuestMemory) -> None:
    new = Vcpu(memory)
    restore_vp(new, save_vp(Vcpu(memory), 0, memory), memory)  # type: ignore[arg-type]
    assert new.written == []
