"""The boot watch: guests that die before they can report a panic, and guests that only appear to."""

from __future__ import annotations

import pytest

from pyvmm.loop import Timers
from pyvmm.machine.boot_watch import EARLY_RESET, RESETS_LIMIT, RESETS_NOTICED, BootWatch
from pyvmm.machine.vcpu_snapshot import VcpuSnapshot
from pyvmm.tail import Tail

SPINNING = VcpuSnapshot(0xFFFFFFFF81000000, 0x1000, True, False)
IDLE = VcpuSnapshot(0xFFFFFFFF81000000, 0x1000, True, True)
STUCK = VcpuSnapshot(0xFFFFFFFF81000000, 0x1000, False, True)
PANIC = b"[    0.20] Kernel panic - not syncing: Too many boot init vars at `33'\r\n"
END = b"[    0.23] ---[ end Kernel panic - not syncing: Too many boot init vars at `33' ]---\r\n"


class Guest:
    """A machine as BootWatch sees it; a test moves time."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers = Timers(lambda: self.now)
        self.console = Tail()
        self.contacts = 0
        self.vcpus = [SPINNING]
        self.polls = 0
        self.ends = True
        self.notices: list[str] = []
        self.deaths: list[str] = []
        self.watch = BootWatch(
            self.timers,
            console=self.console.since,
            contacts=lambda: self.contacts,
            vcpu_snapshots=self.vcpu_snapshots,
            notice=self.notices.append,
            died=self.died,
            silence=10.0,
        )
        self.watch.power_on()

    def died(self, line: str) -> bool:
        self.deaths.append(line)
        return self.ends

    def vcpu_snapshots(self) -> list[VcpuSnapshot]:
        self.polls += 1
        return self.vcpus

    def advance(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            self.now += 0.1
            self.timers.run_due()

    def reset(self, after: float, *, by_guest: bool = True) -> bool:
        self.advance(after)
        goes_on = self.watch.reset(by_guest)
        self.watch.power_on()
        return goes_on


@pytest.fixture
def guest() -> Guest:
    return Guest()


@pytest.mark.parametrize(("vcpu", "words"), [(SPINNING, "but runs"), (STUCK, "is halted with interrupts off")])
def test_a_silent_guest_is_reported_once_with_the_next_step(guest: Guest, vcpu: VcpuSnapshot, words: str) -> None:
    guest.vcpus = [vcpu]
    guest.advance(9.5)
    assert guest.notices == []
    guest.advance(60)
    assert len(guest.notices) == 1
    assert words in guest.notices[0]
    assert "--append 'earlyprintk=ttyS0" in guest.notices[0]
    assert guest.deaths == []


def test_a_guest_that_prints_or_reaches_the_bus_is_not_silent(guest: Guest) -> None:
    guest.advance(5)
    guest.console(b"x")
    guest.advance(60)
    guest.watch.power_on()
    guest.advance(5)
    guest.contacts += 1
    guest.advance(60)
    assert guest.notices == []
    assert guest.polls == 0


def test_an_idle_guest_without_a_console_is_no_dead_one(guest: Guest) -> None:
    guest.vcpus = [IDLE, STUCK]
    guest.advance(11)
    guest.vcpus = [SPINNING]  # at work now and then
    guest.advance(60)
    assert guest.notices == []
    assert guest.polls == 1, "each look stops the guest for a moment"


def test_a_panic_that_ended_on_the_console_is_the_guests_death(guest: Guest) -> None:
    guest.console(PANIC + b"[    0.22] Call Trace:\r\n" + END)
    guest.advance(3)
    assert guest.deaths == ["Kernel panic - not syncing: Too many boot init vars at `33'"]
    guest.advance(60)
    assert len(guest.deaths) == 1


@pytest.mark.parametrize("after", [b"~ # ", b"login: "])
def test_a_panics_text_that_something_follows_is_no_death(guest: Guest, after: bytes) -> None:
    """A user displayed an old log."""
    guest.console(PANIC + END + after)
    guest.advance(60)
    assert guest.deaths == []


def test_a_panic_of_a_guest_that_reached_the_bus_is_the_crash_registers_matter(guest: Guest) -> None:
    guest.contacts += 1
    guest.console(PANIC + END)
    guest.advance(60)
    assert guest.deaths == []


def test_a_guest_that_resets_for_ever_is_reported_and_ended(guest: Guest) -> None:
    for number in range(1, RESETS_LIMIT):
        guest.console(PANIC)
        assert guest.reset(1.2)
        assert len(guest.notices) == (number >= RESETS_NOTICED)
    guest.console(PANIC)
    assert not guest.reset(1.2)
    assert guest.deaths == [
        f"it reset itself {RESETS_LIMIT} times in a row before it reached the VMBus: "
        "Kernel panic - not syncing: Too many boot init vars at `33'"
    ]
    assert "--no-reboot" in guest.notices[0]


def test_a_guest_that_is_kept_may_reset_itself_for_ever(guest: Guest) -> None:
    guest.ends = False
    assert all(guest.reset(0.2) for _ in range(3 * RESETS_LIMIT))
    assert len(guest.deaths) == 3


def test_resets_that_are_no_loop_are_let_be(guest: Guest) -> None:
    guest.vcpus = [IDLE]
    for number in range(5 * RESETS_LIMIT):
        match number % 3:
            case 0:
                assert guest.reset(EARLY_RESET + 1)
            case 1:
                assert guest.reset(0.5, by_guest=False)
            case 2:
                guest.contacts += 1
                assert guest.reset(0.5)
    assert guest.notices == []
