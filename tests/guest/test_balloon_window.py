"""Hot-add over a real bus: a window of real memory, a driver that adds as Linux does, rings in what was added."""

from __future__ import annotations

import pytest

from pyvmm import trace
from pyvmm.devices.balloon import BalloonDevice, ResizeOutcome, Tuning
from pyvmm.devices.balloon import protocol as p
from pyvmm.machine.hotplug import HotAddWindow
from pyvmm.memory import GuestMemory, HostMemory, Region
from tests.support.balloon_guest import BalloonGuest
from tests.support.fake_guest import FakeDriver, FakeGuest

MIB = 1 << 20
RAM = 16 * MIB
PAGES = RAM >> 12
FREE = 2048  # the rings and the bus's pages lie in the same memory: only the upper half is the driver's to give
GPA = 4 << 30
WINDOW = 256 * MIB  # two slots
BLOCK = 4 * MIB  # the guest's; so that a test has some


class Slots:
    """KVM's memory slots."""

    def __init__(self) -> None:
        self.mapped: dict[int, int] = {}

    def map(self, slot: int, region: Region) -> None:
        self.mapped[slot] = region.gpa

    def unmap(self, slot: int) -> None:
        del self.mapped[slot]


@pytest.fixture
def slots() -> Slots:
    return Slots()


@pytest.fixture
def window(guest: FakeGuest, slots: Slots) -> HotAddWindow:
    return HotAddWindow(guest.memory, HostMemory(WINDOW), GPA, WINDOW, map=slots.map, unmap=slots.unmap)


@pytest.fixture
def device(guest: FakeGuest, window: HotAddWindow) -> BalloonDevice:
    guest._frames = [frame for frame in guest._frames if frame < FREE]  # rings below
    ram = [(region.gpa, region.size) for region in guest.memory]
    tuning = Tuning(hot_add_piece=2 * BLOCK >> 12)
    return BalloonDevice(ram, guest.memory.discard, clock=guest.loop.clock, window=window, tuning=tuning)


def fresh() -> BalloonGuest:
    linux = BalloonGuest(PAGES - FREE, first=FREE)
    linux.block = BLOCK >> 12
    return linux


@pytest.fixture
def linux() -> BalloonGuest:
    return fresh()


def serve(driver: FakeDriver, linux: BalloonGuest) -> None:
    """Let the guest's driver answer until the host is quiet."""
    while (packet := driver.take_packet()) is not None:
        for answer in linux.answers(p.parse_host_message(packet.payload)):
            driver.send(answer)


def bind(guest: FakeGuest, device: BalloonDevice, linux: BalloonGuest) -> FakeDriver:
    linux.rebind()
    driver = guest.open(device)
    driver.send(linux.version())
    serve(driver, linux)
    return driver


def resize(device: BalloonDevice, driver: FakeDriver, linux: BalloonGuest, size: int) -> ResizeOutcome:
    device.set_target(size)
    serve(driver, linux)
    assert device.last_outcome is not None
    return device.last_outcome


def added(memory: GuestMemory) -> int:
    return memory.size - RAM


def test_memory_exists_before_it_is_offered_to_the_guest(
    guest: FakeGuest, device: BalloonDevice, linux: BalloonGuest, slots: Slots
) -> None:
    driver = bind(guest, device, linux)
    assert (added(guest.memory), slots.mapped) == (0, {})
    assert resize(device, driver, linux, RAM + 10 * MIB).reached
    assert device.actual == RAM + 10 * MIB
    assert (added(guest.memory), list(slots.mapped.values())) == (10 * MIB, [GPA, GPA + 8 * MIB])
    assert len(linux.hot_added) == 10 * MIB >> 12


def test_added_memory_is_ballooned_and_returned_like_any_other(
    guest: FakeGuest, device: BalloonDevice, linux: BalloonGuest
) -> None:
    driver = bind(guest, device, linux)
    resize(device, driver, linux, RAM + 8 * MIB)
    linux.free -= set(range(PAGES))  # all of it is in use: what goes out is what was added
    guest.memory.write(GPA, b"dirty")
    assert resize(device, driver, linux, RAM + 4 * MIB).reached
    assert guest.memory.read(GPA, 5) == bytes(5)
    assert resize(device, driver, linux, RAM + 8 * MIB).reached
    assert linux.out == set()


def test_rings_may_lie_in_added_memory(guest: FakeGuest, device: BalloonDevice, linux: BalloonGuest) -> None:
    driver = bind(guest, device, linux)
    resize(device, driver, linux, RAM + 4 * MIB)
    guest.close()
    guest._frames = list(range(GPA >> 12, (GPA >> 12) + 64))
    linux.free -= set(guest._frames)
    driver = bind(guest, device, linux)
    assert device.ready
    assert resize(device, driver, linux, RAM - MIB).reached


def test_unbound_and_bound_again_the_guest_keeps_it_and_is_never_offered_it_again(
    guest: FakeGuest, device: BalloonDevice, linux: BalloonGuest
) -> None:
    driver = bind(guest, device, linux)
    resize(device, driver, linux, RAM + 5 * MIB)
    guest.close()
    assert device.actual == RAM + 5 * MIB
    driver = bind(guest, device, linux)
    assert resize(device, driver, linux, RAM + 13 * MIB).reached
    assert not linux.hot_adds_refused
    assert device.info()["hot-add"]["lost"] == 3 * MIB


def test_a_reboot_is_the_boot_size_then_the_target_again(
    guest: FakeGuest, device: BalloonDevice, linux: BalloonGuest, slots: Slots
) -> None:
    driver = bind(guest, device, linux)
    resize(device, driver, linux, RAM + 5 * MIB)
    guest.memory.write(GPA, b"old life")
    guest.reset()
    assert (device.actual, added(guest.memory), slots.mapped) == (RAM, 0, {})
    linux = fresh()
    bind(guest, device, linux)
    assert device.actual == RAM + 5 * MIB
    assert guest.memory.read(GPA, 8) == bytes(8)


def test_after_a_kexec_added_memory_stays_and_other_addresses_are_used(
    guest: FakeGuest, device: BalloonDevice, linux: BalloonGuest
) -> None:
    driver = bind(guest, device, linux)
    resize(device, driver, linux, RAM + 4 * MIB)
    guest.unload().connect()
    assert (device.actual, added(guest.memory)) == (RAM + 4 * MIB, 4 * MIB), "the new kernel may use it"
    assert device.info()["hot-add"]["in-doubt"] == 4 * MIB
    kexeced = fresh()
    driver = bind(guest, device, kexeced)
    assert kexeced.hot_added == set(), "what may be the guest's counts"
    resize(device, driver, kexeced, RAM + 8 * MIB)
    assert min(kexeced.hot_added) == (GPA + 4 * MIB) >> 12


def test_the_trace_reads_as_qemus(guest: FakeGuest, device: BalloonDevice, linux: BalloonGuest) -> None:
    driver = bind(guest, device, linux)
    tail = trace.TailSink(1000)
    trace.subscribe("hv_balloon_*", tail)
    try:
        resize(device, driver, linux, RAM + 4 * MIB)
        guest.reset()
    finally:
        trace.unsubscribe(tail)
    assert [record.text() for record in tail.records] == [
        "hv_balloon_state_change -> S_HOT_ADD_SETUP",
        "hv_balloon_our_range_add adding our range 65536 @ 0x100000",
        "hv_balloon_map_slot mapping memslot 0 / 64 @ 0x0",
        "hv_balloon_state_change -> S_HOT_ADD_RB_WAIT",
        "hv_balloon_state_change -> S_HOT_ADD_POSTING",
        "hv_balloon_outgoing_hot_add posting hot add 0 for 1024 @ 0x100000",
        "hv_balloon_state_change -> S_HOT_ADD_REPLY_WAIT",
        "hv_balloon_incoming_hot_add incoming hot add response 1003, result 1, count 1024",
        "hv_balloon_state_change -> S_IDLE",
        "hv_balloon_state_change -> S_POST_RESET_CLOSED",
        "hv_balloon_unmap_slot unmapping memslot 0 / 64 @ 0x0",
    ]


def test_a_guest_that_cannot_now_is_asked_again_by_the_clock(
    guest: FakeGuest, device: BalloonDevice, linux: BalloonGuest
) -> None:
    driver = bind(guest, device, linux)
    linux.out_of_memory = 1
    device.set_target(RAM + 4 * MIB)
    serve(driver, linux)
    assert device.state_name == "HotAddPausing"
    guest.advance(seconds=2.5)
    serve(driver, linux)
    assert device.actual == RAM + 4 * MIB


def test_info_shows_the_window(guest: FakeGuest, device: BalloonDevice, linux: BalloonGuest) -> None:
    driver = bind(guest, device, linux)
    resize(device, driver, linux, RAM + 4 * MIB)
    info = device.info()
    assert (info["max"], info["last-result"]) == (RAM + WINDOW, "reached")
    assert info["hot-add"] == {
        "address": GPA, "size": WINDOW, "added": 4 * MIB, "in-doubt": 0, "lost": 0, "offline": 0, "removed": 0,
        "refused": "",
    }  # fmt: skip
