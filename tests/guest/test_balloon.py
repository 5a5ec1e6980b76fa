"""The balloon device over a real bus and real rings, the guest's pages in real memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyvmm import trace
from pyvmm.devices.balloon import BalloonDevice, ResizeOutcome, Tuning
from pyvmm.devices.balloon import protocol as p
from tests.support.balloon_guest import BalloonGuest
from tests.support.fake_guest import FakeDriver, FakeGuest

RAM = 16 << 20
PAGES = RAM >> 12
FREE = 2048  # the rings and the bus's pages lie in the same memory: only the upper half is the driver's to give


class Told:
    """What the listeners were told."""

    def __init__(self, device: BalloonDevice) -> None:
        self.actual: list[int] = []
        self.outcomes: list[ResizeOutcome] = []
        self.status: list[tuple[int, int]] = []
        device.on_change.append(self.actual.append)
        device.on_finish.append(self.outcomes.append)
        device.on_status.append(lambda *values: self.status.append(values))


def make(guest: FakeGuest, **options: object) -> BalloonDevice:
    ram = [(region.gpa, region.size) for region in guest.memory]
    return BalloonDevice(ram, guest.memory.discard, clock=guest.loop.clock, **options)  # type: ignore[arg-type]


@pytest.fixture
def device(guest: FakeGuest) -> BalloonDevice:
    guest._frames = [frame for frame in guest._frames if frame < FREE]  # rings below
    return make(guest)


@pytest.fixture
def linux() -> BalloonGuest:
    return BalloonGuest(PAGES - FREE, first=FREE)


def serve(driver: FakeDriver, linux: BalloonGuest) -> None:
    """Let the guest's driver answer until the host is quiet."""
    while (packet := driver.take_packet()) is not None:
        for answer in linux.answers(p.parse_host_message(packet.payload)):
            driver.send(answer)


def bind(guest: FakeGuest, device: BalloonDevice, linux: BalloonGuest, ring_pages: int = 5) -> FakeDriver:
    driver = guest.open(device, ring_pages=ring_pages)
    driver.send(linux.version())
    serve(driver, linux)
    return driver


def test_memory_is_discarded_and_comes_back(guest: FakeGuest, device: BalloonDevice, linux: BalloonGuest) -> None:
    told = Told(device)
    driver = bind(guest, device, linux)
    assert device.ready
    guest.memory.write(RAM - 4096, b"dirty")
    guest.memory.write((FREE - 1) << 12, b"kept")
    device.set_target(RAM - (4 << 20))
    serve(driver, linux)
    out = sorted(linux.out)
    assert len(out) == 1024
    assert all(not any(guest.memory.read(page << 12, 8)) for page in out)
    assert guest.memory.read((FREE - 1) << 12, 4) == b"kept"
    assert (device.actual, told.actual) == (RAM - (4 << 20), [RAM - (4 << 20)])
    assert told.outcomes[-1].reached
    device.set_target(RAM)
    serve(driver, linux)
    assert (device.actual, linux.out) == (RAM, set())


def test_many_unballoon_messages_wait_for_room_in_the_ring(guest: FakeGuest, device: BalloonDevice) -> None:
    linux = BalloonGuest(PAGES - FREE, first=FREE, unit=1)
    linux.free -= set(range(FREE, PAGES, 2))
    driver = bind(guest, device, linux, ring_pages=3)
    device.set_target(RAM - (4 << 20))
    serve(driver, linux)
    device.set_target(RAM)
    assert device.state_name == "UnballoonPosting", "three messages of up to 4 KiB and a ring of 8 KiB"
    serve(driver, linux)
    assert (device.actual, linux.out, device.state_name) == (RAM, set(), "Idle")


@pytest.mark.parametrize("receive_pages", [2, 3, 5])
def test_pages_come_back_in_messages_that_the_guests_ring_takes(
    guest: FakeGuest, device: BalloonDevice, receive_pages: int
) -> None:
    linux = BalloonGuest(PAGES - FREE, first=FREE, unit=1)
    linux.free -= set(range(FREE, PAGES, 2))  # 1024 single pages
    driver = guest.open(device, ring_pages=5, receive_pages=receive_pages)
    driver.send(linux.version())
    serve(driver, linux)
    device.set_target(RAM - (4 << 20))
    serve(driver, linux)
    assert len(linux.out) == 1024
    device.set_target(RAM)
    serve(driver, linux)
    guest.advance(seconds=2)
    assert (device.actual, linux.out, device.state_name) == (RAM, set(), "Idle")


def test_a_time_limit_ends_a_request(guest: FakeGuest, device: BalloonDevice, linux: BalloonGuest) -> None:
    told = Told(device)
    bind(guest, device, linux)
    device.set_target(RAM - 4096)
    guest.advance(seconds=32)
    assert "did not answer" in told.outcomes[-1].reason
    assert device.state_name == "Idle"


def test_a_guest_that_stops_short_is_asked_again_by_the_clock(
    guest: FakeGuest, device: BalloonDevice, linux: BalloonGuest
) -> None:
    told = Told(device)
    driver = bind(guest, device, linux)
    linux.floor = len(linux.free)
    device.set_target(RAM - (4 << 20))
    tail = trace.TailSink(100)
    trace.subscribe("balloon.asks_again", tail)
    try:
        serve(driver, linux)
        guest.advance(seconds=2)
        serve(driver, linux)
        assert [each.reached for each in told.outcomes] == [False]
        linux.floor = 0
        guest.advance(seconds=3)
        serve(driver, linux)
        assert (device.state_name, device.actual) == ("Idle", RAM - (4 << 20))
    finally:
        trace.unsubscribe(tail)
    assert [each.reached for each in told.outcomes] == [False, True]
    assert [record.text() for record in tail.records] == [
        "balloon.asks_again 1024 pages short, try 2 in 1.0 s",
        "balloon.asks_again 1024 pages short, try 3 in 2.0 s",
    ]


def test_a_broken_message_is_refused_and_the_channel_goes_on(
    guest: FakeGuest, device: BalloonDevice, linux: BalloonGuest
) -> None:
    told = Told(device)
    driver = bind(guest, device, linux)
    for payload in (bytes(8), b"\x07\0\x10\0" + bytes(8) + b"\xff" * 4, bytes(1), b"\x63\0\x08\0" + bytes(4)):
        driver.send(payload)
    driver.send(linux.status(available=10, committed=20))
    assert told.status == [(10 * 4096, 20 * 4096)]


def test_a_reset_starts_at_boot_size_and_applies_the_target_again(
    guest: FakeGuest, device: BalloonDevice, linux: BalloonGuest
) -> None:
    driver = bind(guest, device, linux)
    device.set_target(RAM - (1 << 20))
    serve(driver, linux)
    guest.reset()
    assert (device.actual, device.target, device.state_name) == (RAM, RAM - (1 << 20), "Closed")
    fresh = BalloonGuest(PAGES - FREE, first=FREE)
    bind(guest, device, fresh)
    assert len(fresh.out) == 256


def test_an_unbound_and_bound_driver_gets_its_pages_back(
    guest: FakeGuest, device: BalloonDevice, linux: BalloonGuest
) -> None:
    driver = bind(guest, device, linux)
    device.set_target(RAM - (1 << 20))
    serve(driver, linux)
    guest.close()
    assert device.actual == RAM - (1 << 20)
    driver = bind(guest, device, linux)
    device.set_target(RAM)
    serve(driver, linux)
    assert linux.out == set()


def test_after_a_new_contact_old_pages_are_never_given_back(
    guest: FakeGuest, device: BalloonDevice, linux: BalloonGuest
) -> None:
    driver = bind(guest, device, linux)
    device.set_target(RAM - (1 << 20))
    serve(driver, linux)
    guest.unload().connect()
    assert device.actual == RAM
    device.set_target(RAM)
    kexeced = BalloonGuest(PAGES - FREE, first=FREE)
    bind(guest, device, kexeced)
    assert kexeced.answered_unballoons == 0


def test_the_trace_reads_as_qemus(
    guest: FakeGuest, device: BalloonDevice, linux: BalloonGuest, tail: trace.TailSink
) -> None:
    driver = bind(guest, device, linux)
    device.set_target(RAM - (2 << 20))
    serve(driver, linux)
    lines = [record.text() for record in tail.records if record.event.name.startswith("hv_balloon_")]
    assert lines == [
        "hv_balloon_state_change -> S_VERSION",
        "hv_balloon_incoming_version incoming proto version 2.0",
        "hv_balloon_state_change -> S_CAPS",
        "hv_balloon_incoming_caps incoming caps 0x1f",
        "hv_balloon_state_change -> S_IDLE",
        "hv_balloon_state_change -> S_BALLOON_RB_WAIT",
        "hv_balloon_state_change -> S_BALLOON_POSTING",
        "hv_balloon_outgoing_balloon posting balloon 0 for 512, remaining 512",
        "hv_balloon_state_change -> S_BALLOON_REPLY_WAIT",
        "hv_balloon_incoming_balloon incoming balloon response 1003, ranges 1, more 0",
        "hv_balloon_remove_response processing remove response range 512 @ 0x800, both 1",
        "hv_balloon_remove_response_remainder remove response remaining range 512 @ 0x800, both 1",
        "hv_balloon_state_change -> S_IDLE",
    ]


@pytest.fixture
def tail() -> Iterator[trace.TailSink]:
    sink = trace.TailSink(1000)
    trace.subscribe("hv_balloon_*", sink)
    yield sink
    trace.unsubscribe(sink)


@pytest.mark.parametrize("wants", [True, False])
def test_status_reports_are_suppressed_only_if_not_wanted(guest: FakeGuest, wants: bool) -> None:
    device = make(guest, tuning=Tuning(wants_status=wants, send_info=False))
    driver = guest.open(device)
    linux = BalloonGuest(0)
    driver.send(linux.version())
    driver.take_bytes()
    driver.send(linux.caps())
    (response,) = driver.take(p.CapabilitiesResponse)
    assert bool(response.flags & p.ResponseFlag.SUPPRESS_PRESSURE_REPORTS) is not wants


def test_info_shows_everything(guest: FakeGuest, device: BalloonDevice, linux: BalloonGuest) -> None:
    driver = bind(guest, device, linux)
    device.set_target(RAM - 8192)
    serve(driver, linux)
    driver.send(linux.status(available=100))
    info = device.info()
    assert info["version"] == "2.0"
    assert info["capabilities"] == {"balloon": True, "hot-add": True, "alignment": 128 << 20}
    assert (info["boot"], info["actual"], info["target"]) == (RAM, RAM - 8192, RAM - 8192)
    assert (info["available"], info["last-result"]) == (100 * 4096, "reached")
