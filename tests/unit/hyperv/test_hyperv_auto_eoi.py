"""AutoEOI in the user engine: when a vCPU takes such an interrupt, and what waits."""

from __future__ import annotations

from collections.abc import Callable
from struct import pack_into

import pytest

from pyvmm.hyperv.auto_eoi import RETRY, AutoEoi
from pyvmm.kvm.abi import MpState
from pyvmm.kvm.structs import LapicState, Regs, VcpuEvents
from pyvmm.loop import Callback

INTERRUPTS_ON = 1 << 9


class Vcpu:
    """A vCPU with interrupts on and an enabled local APIC."""

    def __init__(self) -> None:
        self.regs = Regs(rflags=INTERRUPTS_ON)
        self.events = VcpuEvents()
        self.mp_state = MpState.RUNNABLE
        self.lapic = LapicState()
        self.set_apic(0xF0, 0x1FF)

    def set_apic(self, register: int, value: int) -> None:
        pack_into("<I", self.lapic, register, value)

    def get_lapic(self) -> LapicState:
        return self.lapic

    def taken(self) -> int | None:
        """The vector that the next entry delivers; the guest's handler has returned then."""
        interrupt = self.events.interrupt
        vector = interrupt.nr if interrupt.injected else None
        self.events = VcpuEvents()
        return vector


class Loop:
    """A loop whose work and timers run when told."""

    def __init__(self) -> None:
        self.posted: list[tuple[Callable[..., object], tuple[object, ...]]] = []
        self.timers: list[tuple[float, Callback]] = []

    def post(self, callback: Callable[..., object], *args: object) -> None:
        self.posted.append((callback, args))

    def after(self, seconds: float, callback: Callback) -> None:
        self.timers.append((seconds, callback))

    def run(self) -> None:
        while self.posted:
            callback, args = self.posted.pop(0)
            callback(*args)


class Guest:
    def __init__(self) -> None:
        self.loop, self.vcpu, self.kicks = Loop(), Vcpu(), [0, 0]
        self.auto_eoi = AutoEoi(2, self.loop, self.kick)  # type: ignore[arg-type]

    def kick(self, vp: int) -> None:
        self.kicks[vp] += 1

    def enter(self, vp: int = 0) -> int | None:
        """Enter the guest: the vector it takes."""
        self.auto_eoi.inject(self.vcpu, vp)  # type: ignore[arg-type]
        self.loop.run()
        return self.vcpu.taken()


@pytest.fixture
def guest() -> Guest:
    return Guest()


def test_the_vcpu_is_kicked_and_takes_the_vector_once(guest: Guest) -> None:
    guest.auto_eoi.raise_(0, 0xB3)
    guest.auto_eoi.raise_(0, 0xB3)
    assert guest.kicks == [2, 0]
    assert (guest.enter(), guest.enter(), guest.loop.timers) == (0xB3, None, [])
    guest.auto_eoi.raise_(0, 0xB3)
    assert guest.enter() == 0xB3, "no EOI was needed"


def test_the_highest_vector_comes_first_and_the_others_soon(guest: Guest) -> None:
    for vector in (0x40, 0xFF, 0x80):
        guest.auto_eoi.raise_(0, vector)
    guest.auto_eoi.raise_(1, 0x99)
    assert guest.enter() == 0xFF
    ((seconds, again),) = guest.loop.timers
    again()
    assert (seconds, guest.kicks) == (RETRY, [4, 1])
    assert (guest.enter(), guest.enter(), guest.enter(), guest.enter(vp=1)) == (0x80, 0x40, None, 0x99)


def _interrupts_off(vcpu: Vcpu) -> None:
    vcpu.regs.rflags = 0


def _shadow(vcpu: Vcpu) -> None:
    vcpu.events.interrupt.shadow = 1


def _another_injected(vcpu: Vcpu) -> None:
    vcpu.events.interrupt.injected, vcpu.events.interrupt.nr = 1, 0x20


def _exception(vcpu: Vcpu) -> None:
    vcpu.events.exception.injected = 1


def _nmi(vcpu: Vcpu) -> None:
    vcpu.events.nmi.injected = 1


def _task_priority(vcpu: Vcpu) -> None:
    vcpu.set_apic(0x80, 0xB0)


def _in_service(vcpu: Vcpu) -> None:
    vcpu.set_apic(0x100 + 0x10 * (0xB0 // 32), 1 << 0xB0 % 32)


@pytest.mark.parametrize(
    "busy", [_interrupts_off, _shadow, _another_injected, _exception, _nmi, _task_priority, _in_service]
)
def test_it_waits_while_the_vcpu_cannot_take_it(guest: Guest, busy: Callable[[Vcpu], None]) -> None:
    busy(guest.vcpu)
    guest.auto_eoi.raise_(0, 0xB3)
    assert guest.enter() != 0xB3
    assert len(guest.loop.timers) == 1
    guest.vcpu.__init__()  # type: ignore[misc]
    assert guest.enter() == 0xB3


def test_a_higher_priority_goes_before_what_is_in_service(guest: Guest) -> None:
    _in_service(guest.vcpu)
    guest.auto_eoi.raise_(0, 0xC0)
    assert guest.enter() == 0xC0


def test_it_wakes_a_halted_vcpu(guest: Guest) -> None:
    guest.vcpu.mp_state = MpState.HALTED
    guest.auto_eoi.raise_(0, 0x50)
    assert (guest.enter(), guest.vcpu.mp_state) == (0x50, MpState.RUNNABLE)


def test_an_apic_that_is_off_and_a_reset_drop_it(guest: Guest) -> None:
    guest.auto_eoi.raise_(0, 0x50)
    guest.vcpu.set_apic(0xF0, 0xFF)
    assert (guest.enter(), guest.loop.timers) == (None, [])
    guest.vcpu.set_apic(0xF0, 0x1FF)
    guest.auto_eoi.raise_(0, 0x50)
    guest.auto_eoi.reset()
    assert guest.enter() is None
