"""Time in which the guest could not run counts for no time-out, in any device."""

from __future__ import annotations

import pytest

from pyvmm.devices.balloon import BalloonDevice, Tuning
from pyvmm.devices.balloon import protocol as p
from pyvmm.devices.ic import Heartbeat, TimeSync
from pyvmm.devices.ic.heartbeat import Health
from pyvmm.devices.ic.protocol import HeartbeatBody, TimeBody
from pyvmm.machine.hotplug import HotAddWindow
from pyvmm.memory import HostMemory
from tests.support.balloon_guest import BalloonGuest
from tests.support.fake_guest import FakeDriver, FakeGuest

RAM = 16 << 20
PAGES = RAM >> 12
FREE = 2048
PAUSE = 42.0
TIMEOUT = Tuning().request_timeout


@pytest.fixture
def device(guest: FakeGuest) -> BalloonDevice:
    guest._frames = [frame for frame in guest._frames if frame < FREE]
    ram = [(region.gpa, region.size) for region in guest.memory]
    size = 256 << 20
    window = HotAddWindow(
        guest.memory, HostMemory(size), 4 << 30, size, map=lambda slot, region: None, unmap=lambda slot: None
    )
    tuning = Tuning(balloon_piece=256)
    return BalloonDevice(ram, guest.memory.discard, clock=guest.time.clock, window=window, tuning=tuning)


@pytest.fixture
def linux() -> BalloonGuest:
    return BalloonGuest(PAGES - FREE, first=FREE)


def serve(driver: FakeDriver, linux: BalloonGuest) -> None:
    while (packet := driver.take_packet()) is not None:
        for answer in linux.answers(p.parse_host_message(packet.payload)):
            driver.send(answer)


def bind(guest: FakeGuest, device: BalloonDevice, linux: BalloonGuest) -> FakeDriver:
    driver = guest.open(device)
    driver.send(linux.version())
    serve(driver, linux)
    return driver


def test_a_balloon_order_given_while_paused_is_fulfilled_after_it(
    guest: FakeGuest, device: BalloonDevice, linux: BalloonGuest
) -> None:
    driver = bind(guest, device, linux)
    guest.time.freeze()
    device.set_target(RAM - (4 << 20))
    guest.advance(PAUSE)
    guest.time.thaw()
    serve(driver, linux)
    assert device.last_outcome is not None and device.last_outcome.reached
    assert device.actual == RAM - (4 << 20)


@pytest.mark.parametrize(
    ("size", "state", "waited"), [(-1, "BalloonWaiting", TIMEOUT - 5), (1, "HotAddWaiting", 2.0)]
)
def test_a_request_that_is_out_waits_on_through_a_pause(
    guest: FakeGuest, device: BalloonDevice, linux: BalloonGuest, size: int, state: str, waited: float
) -> None:
    driver = bind(guest, device, linux)
    device.set_target(RAM + size * (1 << 20))
    assert device.state_name == state
    guest.advance(waited)
    guest.pause(PAUSE)
    assert (device.state_name, device.last_outcome) == (state, None)
    guest.advance(1)
    serve(driver, linux)
    assert device.last_outcome is not None and device.last_outcome.reached


def test_memory_on_its_way_back_waits_on_through_a_pause(
    guest: FakeGuest, device: BalloonDevice, linux: BalloonGuest
) -> None:
    driver = bind(guest, device, linux)
    device.set_target(RAM - (1 << 20))
    serve(driver, linux)
    device.set_target(RAM)
    assert device.state_name == "UnballoonWaiting"
    guest.pause(PAUSE)
    guest.advance(1)
    assert device.state_name == "UnballoonWaiting"
    serve(driver, linux)
    assert device.last_outcome is not None and device.last_outcome.reached


def test_silence_after_a_pause_is_silence(guest: FakeGuest, device: BalloonDevice, linux: BalloonGuest) -> None:
    bind(guest, device, linux)
    device.set_target(RAM - (1 << 20))
    guest.pause(PAUSE)
    guest.advance(TIMEOUT + 2)
    assert device.last_outcome is not None
    assert device.last_outcome.reason == f"the guest did not answer for {TIMEOUT:g} s"


def test_a_pause_before_a_guest_is_asked_again_is_not_its_pause(
    guest: FakeGuest, device: BalloonDevice, linux: BalloonGuest
) -> None:
    driver = bind(guest, device, linux)
    linux.floor = len(linux.free) - 100
    device.set_target(RAM - (1 << 20))
    serve(driver, linux)
    assert device.state_name == "BalloonPausing"
    guest.pause(PAUSE)
    assert device.state_name == "BalloonPausing"
    guest.advance(2)
    assert device.state_name == "BalloonWaiting"


def test_a_paused_guest_is_not_lost(guest: FakeGuest) -> None:
    heartbeat = Heartbeat()
    guest.open(heartbeat, ring_pages=4).accept_versions()
    guest.advance(2)
    guest.take(HeartbeatBody)
    guest.answer(HeartbeatBody(1))
    guest.pause(PAUSE)
    assert heartbeat.health is Health.OK
    guest.drivers[-1].expect_nothing()
    guest.advance(2)
    assert heartbeat.health is Health.OK
    guest.take(HeartbeatBody)
    guest.advance(12)
    assert heartbeat.health is Health.LOST


def test_a_paused_guest_gets_no_samples_of_the_time(guest: FakeGuest) -> None:
    timesync = TimeSync()
    guest.open(timesync, ring_pages=4).accept_versions()
    guest.take(TimeBody)
    guest.pause(PAUSE)
    guest.drivers[-1].expect_nothing()
    assert timesync.sync()
    guest.take(TimeBody)
