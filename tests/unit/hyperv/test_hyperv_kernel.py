"""The kernel engine: what it asks of KVM, and what it does with KVM's exits and eventfds."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from struct import unpack

import pytest

from pyvmm.errors import HostError
from pyvmm.hyperv.kernel import FIRST_SINT_GSI, KernelEngine
from pyvmm.hyperv.tlfs import HypercallStatus, Msr
from pyvmm.kvm import Cap, HypervHcall, HypervSynic, IrqRoute, Rdmsr, Wrmsr
from pyvmm.kvm.abi import RUN_EXIT, IrqchipId
from pyvmm.memory import GuestMemory
from tests.support.fake_kvm import FakeLoop, FakeVcpu, FakeVm

BASE = [IrqRoute.irqchip(4, IrqchipId.IOAPIC, 4)]


class Guest:
    def __init__(self, memory: GuestMemory, loop: FakeLoop, vm: FakeVm, vcpu: FakeVcpu) -> None:
        self.memory, self.loop, self.vm, self.vcpu = memory, loop, vm, vcpu
        self.engine = KernelEngine(2, memory, loop, base_routes=BASE)  # type: ignore[arg-type]
        self.engine.setup_vm(vm)  # type: ignore[arg-type]
        for vp in range(2):
            self.engine.setup_vcpu(vcpu, vp)  # type: ignore[arg-type]
        loop.run()
        self.page = mmap.mmap(-1, 4096)

    def synic(self, simp: int, siefp: int, control: int = 1) -> None:
        exit = HypervSynic(Msr.SIMP, control, siefp, simp)
        assert self.engine.handle(self.vcpu, 0, exit)  # type: ignore[arg-type]
        self.loop.run()

    def call(self, control: int, first: int) -> int:
        exit = HypervHcall(control, (first, 0), self.page)
        assert self.engine.handle(self.vcpu, 0, exit)  # type: ignore[arg-type]
        return int(unpack("<Q", self.page[RUN_EXIT + 16 : RUN_EXIT + 24])[0])


@pytest.fixture
def guest(memory: GuestMemory, loop: FakeLoop, vm: FakeVm, vcpu: FakeVcpu) -> Iterator[Guest]:
    made = Guest(memory, loop, vm, vcpu)
    yield made
    made.engine.reset()


def test_each_vp_has_its_sint_route_beside_the_pc_s_own(guest: Guest) -> None:
    assert [r.gsi for r in guest.vm.routes] == [4, FIRST_SINT_GSI, FIRST_SINT_GSI + 1]
    assert guest.vcpu.caps == [Cap.HYPERV_SYNIC2] * 2


def test_the_line_that_is_raised_is_not_the_resampled_one(guest: Guest) -> None:
    """KVM raises resampled lines from a work queue; a second irqfd only tells of EOM."""
    lines = [(gsi, resample is not None) for _, gsi, resample in guest.vm.irqfds]
    assert lines == [(24, False), (24, True), (25, False), (25, True)]


def test_other_sints_get_lines_above_those_and_give_them_back(guest: Guest) -> None:
    engine = guest.engine
    engine.open_sint(1, 5)
    engine.open_sint(0, 5)
    engine.open_sint(0, 5)
    engine.close_sint(1, 5)
    engine.open_sint(1, 6)
    assert [route.gsi for route in guest.vm.routes] == [4, 24, 25, 27, 26]
    engine.interrupt(1, 6)
    engine.interrupt(1, 5)  # closed: without effect
    (raised,) = (fd for fd, gsi, resample in guest.vm.irqfds if gsi == 26 and resample is None)
    assert os.eventfd_read(raised) == 1
    engine.close_sint(1, 2)  # VMBus's stays
    assert 25 in [route.gsi for route in guest.vm.routes]


def test_a_line_that_kvm_refuses_leaves_nothing_behind(guest: Guest) -> None:
    guest.vm.most_routes = 3
    with pytest.raises(HostError):
        guest.engine.open_sint(0, 5)
    guest.engine.interrupt(0, 5)
    guest.vm.most_routes = 4096
    guest.engine.open_sint(0, 5)
    assert len(guest.vm.irqfds) == 6


def test_a_message_raises_the_vp_s_line(guest: Guest) -> None:
    guest.synic(0x3001, 0x4001)
    done: list[int] = []
    guest.engine.post_message(0, 2, 1, b"x", done.append)
    assert done == [0]
    assert guest.memory.read(0x3210, 1) == b"x"
    assert os.eventfd_read(guest.vm.irqfds[0][0]) == 1


def test_eom_by_the_resample_eventfd_brings_the_next_message(guest: Guest) -> None:
    guest.synic(0x3001, 0x4001)
    for payload in (b"a", b"b"):
        guest.engine.post_message(0, 2, 1, payload, lambda status: None)
    guest.memory.write(0x3200, bytes(4))
    resample = guest.vm.irqfds[1][2]
    assert resample is not None
    os.eventfd_write(resample, 1)
    guest.loop.readers[resample]()
    assert guest.memory.read(0x3210, 1) == b"b"
    assert resample not in guest.loop.readers, "no message waits: an EOI does not wake the loop"
    guest.engine.post_message(0, 2, 1, b"c", lambda status: None)
    assert resample in guest.loop.readers


def test_a_synic_page_outside_ram_is_not_used(guest: Guest) -> None:
    guest.synic(0x3001, 1 << 40 | 1)
    assert not guest.engine.signal_event(0, 2, 1)
    guest.synic(0x3001, 0x4001)
    assert guest.engine.signal_event(0, 2, 1)


def test_a_synic_that_is_switched_off_gets_nothing(guest: Guest) -> None:
    guest.synic(0x3001, 0x4001, control=0)
    assert not guest.engine.signal_event(0, 2, 1)


def test_a_connected_signal_becomes_an_eventfd(guest: Guest) -> None:
    signals: list[int] = []
    guest.engine.connect_signal(7, lambda: signals.append(1))
    fd = guest.vm.eventfds[7]
    os.eventfd_write(fd, 3)
    guest.loop.readers[fd]()
    assert signals == [1]
    guest.loop.readers[fd]()  # spurious
    assert signals == [1]
    guest.engine.disconnect_signal(7)
    assert 7 not in guest.vm.eventfds
    assert fd not in guest.loop.readers


def test_hypercalls_left_to_us_are_answered(guest: Guest) -> None:
    assert guest.call(0x5D | 1 << 16, 9) == HypercallStatus.INVALID_CONNECTION_ID
    assert guest.call(0x42, 0) == HypercallStatus.INVALID_HYPERCALL_CODE


def test_only_the_crash_registers_are_taken_from_kvm(guest: Guest) -> None:
    (denied,) = guest.vm.filter
    assert (denied.base, denied.count) == (Msr.CRASH_P0, 6)
    assert guest.engine.handle(guest.vcpu, 0, Rdmsr(Msr.CRASH_CTL, 0, guest.page))  # type: ignore[arg-type]
    assert not guest.engine.handle(guest.vcpu, 0, Rdmsr(Msr.SIMP, 0, guest.page))  # type: ignore[arg-type]


def test_a_crash_is_reported_on_the_loop(guest: Guest) -> None:
    reports: list[tuple[int, ...]] = []
    guest.engine.on_crash = lambda report: reports.append(report.parameters)
    for n in range(5):
        guest.engine.handle(guest.vcpu, 0, Wrmsr(Msr.CRASH_P0 + n, n, 0, guest.page))  # type: ignore[arg-type]
    guest.engine.handle(guest.vcpu, 0, Wrmsr(Msr.CRASH_CTL, 1 << 63, 0, guest.page))  # type: ignore[arg-type]
    guest.loop.run()
    assert reports == [(0, 1, 2, 3, 4)]


def test_reset_gives_every_descriptor_back(memory: GuestMemory, loop: FakeLoop, vm: FakeVm, vcpu: FakeVcpu) -> None:
    before = len(os.listdir("/proc/self/fd"))
    guest = Guest(memory, loop, vm, vcpu)
    guest.engine.connect_signal(7, lambda: None)
    guest.engine.reset()
    assert len(os.listdir("/proc/self/fd")) == before
    assert not loop.readers


def test_a_reset_before_the_loop_s_next_turn_leaves_it_no_closed_descriptor(
    memory: GuestMemory, loop: FakeLoop, vm: FakeVm, vcpu: FakeVcpu
) -> None:
    """Two `system_reset` in one message of a client."""
    engine = KernelEngine(1, memory, loop, base_routes=BASE)  # type: ignore[arg-type]
    engine.setup_vm(vm)  # type: ignore[arg-type]
    engine.setup_vcpu(vcpu, 0)  # type: ignore[arg-type]
    engine.reset()
    loop.run()
    assert not loop.readers
