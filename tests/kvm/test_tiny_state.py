"""What KVM holds of a VM can be read, and written into another one."""

from __future__ import annotations

import pytest

from pyvmm.errors import HostError
from pyvmm.kvm import Cap, IoOut, IrqchipId, Kvm, MmioWrite, MpState
from pyvmm.kvm.structs import Xcrs

pytestmark = pytest.mark.kvm

PARTS = ("sregs", "regs", "fpu", "xcrs", "xsave", "events", "debugregs", "mp_state")
COUNT = "40 E6 10 EB FB"  # again: inc ax; out 0x10, al; jmp again


def test_a_guest_goes_on_in_another_vm(make_guest, kvm: Kvm) -> None:
    first = make_guest(COUNT, irqchip=True)
    assert [first.vcpu.run().data for _ in range(3)] == [b"\1", b"\2", b"\3"]
    first.vcpu.immediate_exit = True  # finish the pending OUT, so that RIP is past it
    first.vcpu.run()

    second = make_guest(COUNT, irqchip=True)
    for part in PARTS:
        setattr(second.vcpu, part, getattr(first.vcpu, part))
    second.vcpu.set_lapic(first.vcpu.get_lapic())
    msrs = first.vcpu.get_msrs(kvm.msr_index_list(), skip_unreadable=True)
    assert msrs
    second.vcpu.set_msrs({0x174: msrs[0x174], 0x10: msrs[0x10]})
    for chip in IrqchipId:
        second.vm.set_irqchip(first.vm.get_irqchip(chip))
    second.vm.set_clock(first.vm.get_clock().clock)
    assert second.vcpu.run() == IoOut(0x10, 1, 1, b"\4")


def test_the_pit_survives_a_round_trip(make_guest) -> None:
    vm = make_guest("F4", irqchip=True).vm
    vm.create_pit()
    state = vm.get_pit()
    state.channels[0].mode = 2
    vm.set_pit(state)
    assert vm.get_pit().channels[0].mode == 2


def test_second_processors_wait_to_be_started(make_guest) -> None:
    guest = make_guest("F4", irqchip=True)
    assert guest.vm.create_vcpu(1).mp_state == MpState.UNINITIALIZED


def test_msrs_are_read_back_as_written(make_guest) -> None:
    vcpu = make_guest("F4").vcpu
    vcpu.set_msrs({0x174: 0x10, 0x175: 0x1234})
    assert vcpu.get_msrs([0x175, 0x174]) == {0x175: 0x1234, 0x174: 0x10}


def test_the_refused_msr_is_named_and_the_ones_before_it_are_written(make_guest) -> None:
    vcpu = make_guest("F4").vcpu
    with pytest.raises(HostError, match=r"KVM_SET_MSRS on vcpu 0 stopped at MSR 0x40000abc = 0x1"):
        vcpu.set_msrs({0x174: 0x20, 0x40000ABC: 1})
    with pytest.raises(HostError, match=r"KVM_GET_MSRS on vcpu 0 stopped at MSR 0x40000abc"):
        vcpu.get_msrs([0x174, 0x40000ABC])
    assert vcpu.get_msrs([0x174, 0x40000ABC, 0x175], skip_unreadable=True) == {0x174: 0x20, 0x175: 0}


def test_cpuid_is_what_was_set(make_guest, kvm: Kvm) -> None:
    functions = {entry.function for entry in kvm.supported_cpuid()}
    assert {entry.function for entry in make_guest("F4").vcpu.get_cpuid()} <= functions


def test_an_xsave_area_of_the_wrong_size_is_refused(make_guest) -> None:
    with pytest.raises(HostError, match="XSAVE area of 16 bytes"):
        make_guest("F4").vcpu.xsave = bytes(16)


def test_the_dirty_log_shows_the_page_written(make_guest) -> None:
    # mov byte [0x5000], 1; hlt
    guest = make_guest("C6 06 00 50 01 F4")
    guest.vm.set_memory(0, 0, len(guest.ram), guest.address, log_dirty=True)
    guest.vm.dirty_log(0)
    guest.until_halt()
    written = int.from_bytes(guest.vm.dirty_log(0), "little")
    assert written >> 5 == 1  # no page above; the code's page may be marked too (seen with nested SVM)
    assert int.from_bytes(guest.vm.dirty_log(0), "little") == 0
    with pytest.raises(HostError, match="no memory slot 3"):
        guest.vm.dirty_log(3)


def test_writes_to_a_readonly_slot_leave_the_guest(make_guest) -> None:
    guest = make_guest("C6 06 00 50 01 F4")
    guest.need(Cap.READONLY_MEM)
    guest.vm.set_memory(0, 0, 0, 0)
    guest.vm.set_memory(0, 0, len(guest.ram), guest.address, readonly=True)
    assert guest.until_halt() == [MmioWrite(0x5000, b"\1")]


def test_the_tsc_has_a_frequency(make_guest) -> None:
    guest = make_guest("F4")
    guest.need(Cap.GET_TSC_KHZ)
    assert guest.vcpu.tsc_khz > 100_000


def test_setting_no_extended_control_registers_changes_nothing(make_guest) -> None:
    """What a host without XSAVE gives and KVM there refuses to take: the emulated host is one."""
    vcpu = make_guest("F4").vcpu
    before = bytes(vcpu.xcrs)
    vcpu.xcrs = Xcrs(nr_xcrs=0)
    assert bytes(vcpu.xcrs) == before
