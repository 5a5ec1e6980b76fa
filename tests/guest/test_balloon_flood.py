"""A guest that answers with as many single pages as it can: what one turn of the loop has to do with it."""

from __future__ import annotations

import pytest

from pyvmm.devices.balloon import BalloonDevice, Tuning, discards
from pyvmm.devices.balloon import protocol as p
from pyvmm.devices.balloon.discards import RANGES_A_TURN
from tests.support.balloon_guest import BalloonGuest
from tests.support.fake_guest import FakeDriver, FakeGuest

MIB = 1 << 20
PAGES = 512 * MIB >> 12
FREE = PAGES // 2  # the rings are below
PACKETS = 64
RANGES = (p.MESSAGE_LIMIT - p.RANGES_AT) // 8


@pytest.fixture
def guest() -> FakeGuest:
    made = FakeGuest(memory_mib=512)
    made._frames = [frame for frame in made._frames if frame < FREE]
    return made


@pytest.fixture
def device(guest: FakeGuest, monkeypatch: pytest.MonkeyPatch) -> BalloonDevice:
    monkeypatch.setattr(discards, "SECONDS_A_TURN", 60.0)  # count, whatever else this machine does
    tuning = Tuning(balloon_piece=PAGES)
    ram = [(region.gpa, region.size) for region in guest.memory]
    return BalloonDevice(ram, guest.memory.discard, clock=guest.time.clock, tuning=tuning)


@pytest.fixture
def driver(guest: FakeGuest, device: BalloonDevice) -> FakeDriver:
    driver = guest.open(device, ring_pages=80)
    linux = BalloonGuest(8, first=FREE)
    driver.send(linux.version())
    driver.take_bytes()
    driver.send(linux.caps())
    for _ in range(2):
        driver.take_bytes()
    return driver


def message(number: int, ranges: int = RANGES) -> bytes:
    """Every other page from a place of its own on."""
    start = FREE + number * 2 * ranges
    return p.BalloonResponse(number, True, [(start + 2 * n, 1) for n in range(ranges)]).build()


def flood(driver: FakeDriver, *messages: bytes) -> list[int]:
    """One doorbell with all of them in the ring; the discards of each callback of the loop until it is idle."""
    counters = driver.device.machine.ledger.counters  # type: ignore[attr-defined]
    for each in messages:
        assert driver.outgoing.put(each) is not None
    seen, counts = counters.discards, []
    driver.signal()
    while True:
        counts.append(counters.discards - seen)
        seen = counters.discards
        if not driver.guest.loop.step():
            return counts


def test_no_turn_discards_more_than_its_share(device: BalloonDevice, driver: FakeDriver) -> None:
    device.set_target(MIB)
    driver.take_bytes()
    counts = flood(driver, *[message(n) for n in range(PACKETS)])
    assert sum(counts) == PACKETS * RANGES, "all of it in the end"
    assert max(counts) <= RANGES_A_TURN
    assert device.actual == (PAGES - PACKETS * RANGES) << 12


def test_nothing_more_is_asked_for_while_pages_wait(device: BalloonDevice, driver: FakeDriver) -> None:
    device.set_target(MIB)
    driver.take_bytes()
    driver.outgoing.put(message(0))
    last = p.BalloonResponse(9, False, [(PAGES - 1, 1)]).build()
    driver.outgoing.put(last)
    driver.signal()
    ledger = device.machine.ledger
    assert ledger.waiting_pages == RANGES + 1 - RANGES_A_TURN
    device.set_target(256 * MIB)
    assert driver.take_packet() is None
    driver.guest.loop.run()
    assert ledger.waiting_pages == 0
    request = p.parse_host_message(driver.take_bytes())
    assert isinstance(request, p.BalloonRequest)


def test_pages_that_wait_when_the_driver_goes_are_discarded_all_the_same(
    device: BalloonDevice, driver: FakeDriver
) -> None:
    device.set_target(MIB)
    driver.take_bytes()
    driver.outgoing.put(message(0))
    driver.signal()
    assert device.machine.ledger.waiting_pages > 0
    driver.guest.close()
    driver.guest.loop.run()
    assert device.machine.ledger.waiting_pages == 0
    assert device.actual == (PAGES - RANGES) << 12


def test_a_longer_message_than_any_driver_sends_is_refused(
    guest: FakeGuest, device: BalloonDevice, driver: FakeDriver
) -> None:
    device.set_target(MIB)
    driver.take_bytes()
    counts = flood(driver, message(0, 8189), message(1, 8189))
    assert (sum(counts), device.actual) == (0, PAGES << 12)
    assert guest.bus.refused["GuestProtocolError"] == 2
