"""The state of a VM is restored into a new one, and the guest notices no time between."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from struct import pack_into, unpack

import pytest

from pyvmm.kvm import Cap, IoOut, Kvm
from pyvmm.kvm.saved_state import TSC, TSC_DEADLINE, keep_differing, restore_vm, save_vm
from pyvmm.kvm.state import VcpuState

pytestmark = pytest.mark.kvm

SHOW_TSC = "66 0F 31 66 E7 10 66 89 D0 66 E7 14 EB F3"
"""again: rdtsc; out 0x10, eax; mov eax, edx; out 0x14, eax; jmp again. With 32-bit operands in real mode."""
WAIT = "FB F4 EB FC"  # sti; again: hlt; jmp again
TICK = bytes.fromhex("E6 99 F4 EB FD")  # out 0x99, al; again: hlt; jmp again
VECTOR, HANDLER = 0x40, 0x3000
LVT_TIMER, SPURIOUS = 0x320, 0xF0
DEADLINE_BIT = 1 << 24  # of CPUID 1 ECX
PAUSE = 0.4  # seconds between saving and restoring


@pytest.fixture
def make(make_guest, kvm: Kvm):  # type: ignore[no-untyped-def]
    """Makes guests with interrupt controllers and PIT."""

    def make_one(code: str):  # type: ignore[no-untyped-def]
        guest = make_guest(code, irqchip=True)
        guest.vm.create_pit()
        entries = [replace(e, ecx=e.ecx | DEADLINE_BIT) if e.function == 1 else e for e in kvm.supported_cpuid()]
        guest.vcpu.set_cpuid(entries)
        return guest

    return make_one


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Interrupt a vCPU that still runs after `seconds`."""
    before = signal.signal(signal.SIGALRM, lambda number, frame: None)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def next_tsc(guest) -> int:  # type: ignore[no-untyped-def]
    parts: dict[int, int] = {}
    while set(parts) != {0x10, 0x14}:
        exit = guest.vcpu.run()
        assert isinstance(exit, IoOut)
        if exit.port == 0x10 or parts:
            (parts[exit.port],) = unpack("<I", exit.data)
    return parts[0x14] << 32 | parts[0x10]


def has_tsc_of_its_own(make) -> bool:  # type: ignore[no-untyped-def]
    """Return whether a guest's TSC can be set, by the host too: some nested KVMs show the host's."""
    vcpu = make("F4").vcpu
    vcpu.set_msrs({TSC: 1})
    return vcpu.get_msrs([TSC])[TSC] < vcpu.tsc_khz * 1000


def settle(guest) -> None:  # type: ignore[no-untyped-def]
    """Finish the last exit, as a parked vCPU does."""
    guest.vcpu.immediate_exit = True
    guest.vcpu.run()
    guest.vcpu.immediate_exit = False


def moved(guest, kvm: Kvm, make):  # type: ignore[no-untyped-def]
    """Return a new guest that goes on where `guest` was saved PAUSE seconds before."""
    settle(guest)
    saved = save_vm(guest.vm, kvm.msr_index_list())
    keep_differing(saved, make("F4").vm)
    time.sleep(PAUSE)
    new = make("F4")
    new.ram[:] = guest.ram[:]
    restore_vm(new.vm, saved)
    return new


@pytest.mark.parametrize("by", ["offset", "value"])
def test_the_tsc_goes_on_from_where_it_was(make, kvm: Kvm, monkeypatch, by: str) -> None:
    if by == "value":  # KVM before Linux 5.16
        monkeypatch.setattr(VcpuState, "tsc_offset", None)
    if not has_tsc_of_its_own(make):
        pytest.skip("this KVM shows its guests the host's TSC")
    guest = make(SHOW_TSC)
    for _ in range(10):
        before = next_tsc(guest)
    new = moved(guest, kvm, make)
    after = next_tsc(new)
    assert 0 < after - before < PAUSE / 2 * new.vcpu.tsc_khz * 1000


def test_the_vm_clock_goes_on_from_where_it_was(make, kvm: Kvm) -> None:
    guest = make(SHOW_TSC)
    next_tsc(guest)
    before = guest.vm.get_clock().clock
    assert 0 < moved(guest, kvm, make).vm.get_clock().clock - before < PAUSE / 2 * 1e9


def test_an_armed_deadline_timer_fires_as_late_as_it_would_have(make, kvm: Kvm) -> None:
    guest = make(WAIT)
    guest.need(Cap.TSC_DEADLINE_TIMER)
    guest.vector(VECTOR, TICK, HANDLER)
    lapic = guest.vcpu.get_lapic()
    pack_into("<I", lapic.regs, SPURIOUS, 0x1FF)
    pack_into("<I", lapic.regs, LVT_TIMER, VECTOR | 2 << 17)
    guest.vcpu.set_lapic(lapic)
    delay = PAUSE / 2
    deadline = guest.vcpu.get_msrs([TSC])[TSC] + int(delay * guest.vcpu.tsc_khz * 1000)
    guest.vcpu.set_msrs({TSC_DEADLINE: deadline})
    new = moved(guest, kvm, make)
    assert new.vcpu.get_msrs([TSC_DEADLINE]) == {TSC_DEADLINE: deadline}
    begin = time.monotonic()
    with limited(10):
        assert new.vcpu.run() == IoOut(0x99, 1, 1, b"\0")
    if has_tsc_of_its_own(make):
        assert time.monotonic() - begin > delay / 2
    assert new.vcpu.get_msrs([TSC])[TSC] >= deadline


def test_only_registers_that_differ_are_written(make, kvm: Kvm) -> None:
    guest = make("F4")
    guest.vcpu.set_msrs({0x174: 0x10, 0xC0000082: 0x1234})
    saved = save_vm(guest.vm, kvm.msr_index_list())
    assert len(saved.vcpus[0].msrs) > 10
    keep_differing(saved, make("F4").vm)
    assert {0x174: 0x10, 0xC0000082: 0x1234}.items() <= saved.vcpus[0].msrs.items()
    assert len(saved.vcpus[0].msrs) < 6
    assert saved.vcpus[0].refused == []


def test_a_register_that_kvm_refuses_is_left_out_and_named(make, kvm: Kvm) -> None:
    guest = make("F4")
    saved = save_vm(guest.vm, kvm.msr_index_list())
    saved.vcpus[0].msrs[0x40000ABC] = 1
    keep_differing(saved, make("F4").vm)
    assert (saved.vcpus[0].refused, 0x40000ABC in saved.vcpus[0].msrs) == ([0x40000ABC], False)
