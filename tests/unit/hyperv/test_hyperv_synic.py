"""The SynIC: one message a slot, event flags, and who is interrupted when."""

from __future__ import annotations

import errno
from struct import unpack

import pytest

from pyvmm.errors import GuestMemoryError
from pyvmm.hyperv.synic import MAX_QUEUED, Synic
from pyvmm.hyperv.tlfs import SintValue
from pyvmm.memory import GuestMemory

SIMP, SIEFP = 0x3000, 0x4000
SINT = 2
SLOT = SIMP + SINT * 256


class Setup:
    """A SynIC of two VPs, with the pages of the first in place."""

    def __init__(self, memory: GuestMemory, *, masks_known: bool = True) -> None:
        self.memory = memory
        self.interrupts: list[tuple[int, int]] = []
        self.synic = Synic(2, memory, lambda vp, sint: self.interrupts.append((vp, sint)), masks_known=masks_known)
        self.synic.set_page(0, "simp", SIMP | 1)
        self.synic.set_page(0, "siefp", SIEFP | 1)
        self.synic.vps[0].sints[SINT] = SintValue(0xF3)
        self.done: list[int] = []

    def post(self, payload: bytes = b"hello", vp: int = 0, type: int = 1) -> None:
        self.synic.post(vp, SINT, type, payload, self.done.append)

    def slot(self) -> tuple[int, int, int]:
        """Type, size, flags."""
        return unpack("<IBB", self.memory.read(SLOT, 6))

    def free_slot(self) -> int:
        """What the guest does with a message: its payload's first byte; then the slot is free."""
        first = self.memory.read(SLOT + 16, 1)[0]
        self.memory.write(SLOT, bytes(4))
        return first


@pytest.fixture
def setup(memory: GuestMemory) -> Setup:
    return Setup(memory)


def test_a_message_lies_in_the_slot_and_the_guest_is_interrupted(setup: Setup) -> None:
    setup.post(b"hello")
    assert setup.slot() == (1, 5, 0)
    assert setup.memory.read(SLOT + 16, 5) == b"hello"
    assert setup.interrupts == [(0, SINT)]
    assert setup.done == [0]


def test_a_busy_slot_gets_the_pending_flag_and_the_message_waits_for_eom(setup: Setup) -> None:
    setup.post(b"a")
    setup.post(b"b")
    assert setup.slot() == (1, 1, 1)
    assert setup.done == [0, -errno.EAGAIN]
    assert setup.interrupts == [(0, SINT)]
    assert setup.free_slot() == ord("a")
    setup.synic.retry(0)
    assert setup.slot() == (1, 1, 0)
    assert setup.done == [0, -errno.EAGAIN, 0]
    assert setup.interrupts == [(0, SINT)] * 2
    assert setup.free_slot() == ord("b")


def test_an_eom_while_the_slot_is_still_busy_changes_nothing_but_the_answer(setup: Setup) -> None:
    setup.post(b"a")
    setup.post(b"b")
    setup.synic.retry(0)
    assert setup.done == [0, -errno.EAGAIN, -errno.EAGAIN]
    assert setup.free_slot() == ord("a")


def test_messages_keep_their_order(setup: Setup) -> None:
    for n in range(5):
        setup.post(bytes([n]))
    seen = []
    for _ in range(5):
        seen.append(setup.free_slot())
        setup.synic.retry(0)
    assert seen == [0, 1, 2, 3, 4]


def test_a_short_message_does_not_look_long_after_a_long_one(setup: Setup) -> None:
    setup.post(b"x" * 240)
    setup.free_slot()
    setup.post(b"y")
    assert setup.slot() == (1, 1, 0)


def test_enabling_a_page_zeroes_it(setup: Setup) -> None:
    setup.memory.write(0x5000, b"\xff" * 4096)
    setup.synic.set_page(0, "simp", 0x5000 | 1)
    assert setup.memory.read(0x5000, 4096) == bytes(4096)


def test_writing_the_same_page_again_keeps_what_is_in_it(setup: Setup) -> None:
    setup.post(b"a")
    setup.synic.set_page(0, "simp", SIMP | 1)
    assert setup.slot() == (1, 1, 0)


def test_a_page_outside_ram_is_refused_and_nothing_changes(setup: Setup) -> None:
    with pytest.raises(GuestMemoryError):
        setup.synic.set_page(0, "simp", 1 << 40 | 1)
    setup.post(b"a")
    assert setup.slot() == (1, 1, 0)


@pytest.mark.parametrize("off", ["control", "page", "mask"])
def test_a_message_waits_while_the_synic_is_off_and_comes_once_it_is_on(setup: Setup, off: str) -> None:
    vp = setup.synic.vps[0]
    match off:
        case "control":
            vp.control = 0
        case "page":
            setup.synic.set_page(0, "simp", 0)
        case "mask":
            vp.sints[SINT] = SintValue(0x100F3)
    setup.post(b"a")
    assert setup.done == [-errno.EAGAIN]
    assert not setup.interrupts
    match off:
        case "control":
            vp.control = 1
        case "page":
            setup.synic.set_page(0, "simp", SIMP | 1)
        case "mask":
            vp.sints[SINT] = SintValue(0xF3)
    setup.synic.retry(0)
    assert setup.done == [-errno.EAGAIN, 0]
    assert setup.interrupts == [(0, SINT)]


def test_masks_kvm_keeps_to_itself_do_not_hold_messages_back(memory: GuestMemory) -> None:
    setup = Setup(memory, masks_known=False)
    setup.synic.vps[0].sints[SINT] = SintValue(0x10000)
    setup.post(b"a")
    assert setup.done == [0]


def test_a_vp_that_does_not_exist_is_an_error_and_not_a_wait(setup: Setup) -> None:
    setup.post(vp=2)
    assert setup.done == [-errno.EINVAL]


def test_the_queue_is_bounded(setup: Setup) -> None:
    setup.synic.vps[0].control = 0
    for _ in range(MAX_QUEUED):
        setup.post()
    setup.done.clear()
    setup.post()
    assert setup.done == [-errno.ENOBUFS]


def test_dropped_messages_never_come(setup: Setup) -> None:
    setup.post(b"a")
    setup.post(b"b")
    setup.synic.drop(SINT)
    setup.free_slot()
    setup.synic.retry(0)
    assert setup.slot()[0] == 0
    assert setup.done == [0, -errno.EAGAIN]


def test_an_event_flag_interrupts_once_until_the_guest_clears_it(setup: Setup) -> None:
    assert setup.synic.signal(0, SINT, 9)
    assert setup.synic.signal(0, SINT, 9)
    assert setup.memory.read(SIEFP + SINT * 256 + 1, 1) == b"\x02"
    assert setup.interrupts == [(0, SINT)]
    setup.memory.write(SIEFP + SINT * 256, bytes(256))
    assert setup.synic.signal(0, SINT, 9)
    assert setup.interrupts == [(0, SINT)] * 2


def test_the_last_flag_stays_within_its_sint(setup: Setup) -> None:
    assert setup.synic.signal(0, SINT, 2047)
    page = setup.memory.read(SIEFP, 4096)
    assert page[SINT * 256 + 255] == 0x80
    assert sum(page) == 0x80


@pytest.mark.parametrize("vp", [1, 2])
def test_an_event_without_a_page_is_lost_and_reported_as_lost(setup: Setup, vp: int) -> None:
    assert not setup.synic.signal(vp, SINT, 9)
    assert not setup.interrupts


def test_reset_forgets_pages_and_messages(setup: Setup) -> None:
    setup.post(b"a")
    setup.post(b"b")
    setup.synic.reset()
    setup.memory.write(SLOT, bytes(4))
    setup.synic.retry(0)
    assert not setup.synic.signal(0, SINT, 1)
    assert setup.slot()[0] == 0
    assert setup.synic.vps[0].sints[SINT].masked
