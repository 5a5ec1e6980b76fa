"""The raw host (pyvmm.testbed.host) against a guest played by hand: what it puts on the wire, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from struct import pack, unpack_from
from uuid import UUID

import pytest

from pyvmm.devices.balloon import BalloonDevice
from pyvmm.devices.balloon import protocol as b
from pyvmm.devices.ic.heartbeat import Heartbeat
from pyvmm.devices.ic.protocol import IcHeader, IcType
from pyvmm.hyperv.synic import Synic
from pyvmm.testbed.host import Host, Parts
from pyvmm.testbed.waits import TimedOut
from pyvmm.vmbus import protocol as p
from pyvmm.vmbus.protocol import MessageType
from tests.support.balloon_guest import BalloonGuest
from tests.support.fake_guest import FakeDriver, FakeGuest

FREE = 2048
BALLOON = UUID("525074dc-8985-46e2-8057-a307dc18a502")


@pytest.fixture
def balloon(guest: FakeGuest) -> BalloonDevice:
    """A balloon device on the bus, whose driver has not come yet."""
    guest._frames = [frame for frame in guest._frames if frame < FREE]
    ram = [(region.gpa, region.size) for region in guest.memory]
    device = BalloonDevice(ram, guest.memory.discard, clock=guest.loop.clock)
    guest.bus.add(device)
    return device


@pytest.fixture
def host(guest: FakeGuest, balloon: BalloonDevice) -> Host:
    def until(happened: Callable[[], object], seconds: float, what: str) -> None:
        guest.loop.run()
        if not happened():
            raise TimedOut(f"not within {seconds:g} s: {what}")

    return Host(Parts(guest.bus, guest.partition, guest.memory, until))


@pytest.fixture
def driver(guest: FakeGuest, balloon: BalloonDevice, host: Host) -> FakeDriver:
    """hv_balloon, bound; what it gives comes from `linux`."""
    driver = guest.open(balloon)
    linux = BalloonGuest((16 << 8) - FREE, first=FREE)
    driver.send(linux.version())
    for answer in linux.answers(b.parse_host_message(driver.take_bytes())):
        driver.send(answer)
    while driver.take_packet():  # caps response, info
        pass
    return driver


def test_unballoon_names_any_page_and_any_count(host: Host, driver: FakeDriver) -> None:
    host.balloon.send_unballoon([((1 << 40) - 1, 1)], count=2000, trans_id=7)
    kind, size, trans_id, more, count, word = unpack_from("<HHIIIQ", driver.take_bytes())
    assert (kind, size, trans_id, more, count) == (8, 24, 7, 0, 2000)
    assert word == (1 << 40) - 1 | 1 << 40


def test_unballoon_of_many_ranges_takes_several_messages(host: Host, driver: FakeDriver) -> None:
    host.balloon.send_unballoon([(2 * n, 1) for n in range(600)])
    first, second = (b.UnballoonRequest.parse(driver.take_bytes()) for _ in range(2))
    driver.expect_nothing()
    assert (len(first.ranges), first.more, second.more) == (508, True, False)
    assert first.ranges + second.ranges == [(2 * n, 1) for n in range(600)]


@pytest.mark.parametrize(
    ("ranges", "text"),
    [([(-1, 1)], "a frame has 40 bits"), ([(1 << 40, 1)], "a frame has 40 bits"), ([(0, -1)], "has 0 pages or more")],
)
def test_a_range_that_no_bytes_express_is_the_tests_error(
    host: Host, driver: FakeDriver, ranges: list[tuple[int, int]], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        host.balloon.send_unballoon(ranges)
    driver.expect_nothing()


def test_hot_add_has_both_forms(host: Host, driver: FakeDriver) -> None:
    host.balloon.send_hot_add((0x40000, 32768))
    host.balloon.send_hot_add((0x40000, 32768), (0x50000, 1))
    plain, with_region = (b.HotAddRequest.parse(driver.take_bytes()[:size]) for size in (16, 24))
    assert (plain.range, plain.region) == ((0x40000, 32768), None)
    assert (with_region.range, with_region.region) == ((0x40000, 32768), (0x50000, 1))


def test_other_requests_go_out_as_given(host: Host, driver: FakeDriver) -> None:
    host.balloon.send_balloon(5, reserved=9)
    assert unpack_from("<HHIII", driver.take_bytes())[3:] == (5, 9)
    host.balloon.send_version_response(0)
    assert b.VersionResponse.parse(driver.take_bytes()).is_accepted == 0
    host.balloon.send_caps_response(2)
    assert b.CapabilitiesResponse.parse(driver.take_bytes()).flags == 2
    host.balloon.send_info(77, type=3, data_size=99)
    info = b.Info.parse(driver.take_bytes())
    assert (info.info_type, info.data_size, info.pages) == (3, 99, 77)
    host.balloon.send_type(13, b"abcd", size=4000)
    assert driver.take_bytes()[:4] == pack("<HH", 13, 4000)
    host.balloon.send(b"x")
    assert driver.take_bytes() == b"x" + bytes(7)


def test_a_message_longer_than_any_is_stored_in_the_ring(host: Host, driver: FakeDriver) -> None:
    host.balloon.send_type(8, bytes(6000))
    taken = driver.incoming.take()
    assert taken is not None
    assert len(taken[0].payload) == 6008
    host.balloon.send_balloon(1)  # the channel goes on behind it
    assert unpack_from("<H", driver.take_bytes())[0] == 6
    with pytest.raises(ValueError, match="in a ring of 16384"):
        host.balloon.send(bytes(20000))


def test_answers_are_kept_and_the_device_refuses_them(
    host: Host, guest: FakeGuest, balloon: BalloonDevice, driver: FakeDriver
) -> None:
    refused = guest.bus.refused["hv-balloon"]
    host.balloon.send_balloon(4)
    driver.take_bytes()
    driver.send(b.BalloonResponse(1, False, [(FREE, 4)]).build())
    answer = host.balloon.wait_for(b.MessageType.BALLOON_RESPONSE)
    assert b.BalloonResponse.parse(answer.data).ranges == [(FREE, 4)]
    assert guest.bus.refused["hv-balloon"] == refused + 1
    with pytest.raises(TimedOut, match="HOT_ADD_RESPONSE"):
        host.balloon.wait_for(b.MessageType.HOT_ADD_RESPONSE)


def test_a_silent_device_answers_nothing_until_it_resumes(
    host: Host, guest: FakeGuest, balloon: BalloonDevice
) -> None:
    linux = BalloonGuest(16, first=FREE)
    driver = guest.open(balloon)
    with host.balloon.silent():
        driver.send(linux.version())
        driver.expect_nothing()
        assert host.balloon.is_silent
    driver.send(linux.version())
    assert b.VersionResponse.parse(driver.take_bytes()).is_accepted == 1
    assert len(host.balloon.answers(b.MessageType.VERSION_REQUEST)) == 2


def test_pages_out_are_the_devices(host: Host, guest: FakeGuest, balloon: BalloonDevice, driver: FakeDriver) -> None:
    balloon.set_target(15 << 20)
    guest.loop.run()
    driver.take_bytes()
    driver.send(b.BalloonResponse(1, False, [(FREE, 200), (FREE + 300, 56)]).build())
    assert host.balloon.pages_out() == [(FREE, 200), (FREE + 300, 56)]


def test_an_offer_of_any_shape_reaches_the_guest(host: Host, guest: FakeGuest) -> None:
    guest.connect()
    instance = host.vmbus.offer(relid=5000, flags=0x2006, monitor_allocated=1, dedicated=0, connection_id=1 << 31)
    offer = guest.expect(p.OfferChannel)
    assert offer.build()[8:24] == BALLOON.bytes_le
    assert (offer.instance, offer.relid, offer.flags) == (instance, 5000, 0x2006)
    assert (offer.monitor_allocated, offer.dedicated, offer.connection_id) == (1, 0, 1 << 31)
    host.vmbus.rescind(5000)
    assert guest.expect(p.Rescind).relid == 5000
    assert host.vmbus.offer_again(relid=9) == 9
    assert guest.expect(p.OfferChannel).instance == BalloonDevice.OFFER.instance


def test_an_added_device_opens_and_answers_as_told(host: Host, guest: FakeGuest) -> None:
    guest.connect()
    device = host.vmbus.add(answers=lambda payload: [payload[::-1]])
    driver = guest.open(device)
    assert device.channel is driver.channel
    driver.send(b"12345678")
    assert driver.take_bytes() == b"87654321"
    assert [each.data for each in host.balloon_of(device).received] == [b"12345678"]
    guest.close(driver)
    assert device.channel is None


def test_withheld_answers_come_late_or_never(host: Host, guest: FakeGuest, balloon: BalloonDevice) -> None:
    driver = guest.open(balloon)
    withheld = host.vmbus.withhold(MessageType.GPADL_TORNDOWN, count=1)
    guest.request(p.CloseChannel(driver.offer.relid))
    guest.request(p.GpadlTeardown(driver.offer.relid, driver.gpadl))
    assert (guest.inbox, len(withheld)) == ([], 1)
    withheld.release()
    assert guest.expect(p.GpadlTorndown).gpadl == driver.gpadl
    with pytest.raises(ValueError, match="at least 1"):
        host.vmbus.withhold(MessageType.OPEN_RESULT, count=0)


def test_answers_are_changed_once_or_always(host: Host, guest: FakeGuest) -> None:
    host.vmbus.change(MessageType.VERSION_RESPONSE, lambda message: message[:8] + bytes(len(message) - 8), count=1)
    assert guest.contact().supported == 0
    assert guest.contact().supported == 1
    with host.vmbus.filtered(lambda message: None):
        guest.request(p.InitiateContact(0x50003, 0, 2, 0, 0), 4)
        assert guest.inbox == []
    assert len(host.vmbus.requests(MessageType.INITIATE_CONTACT)) == 3
    host.vmbus.honest()


def test_messages_of_any_type_and_bytes(host: Host, guest: FakeGuest) -> None:
    guest.connect()
    host.vmbus.send_type(99, b"abc")
    host.vmbus.send(b"")
    assert [payload for _, payload in guest.inbox] == [pack("<II", 99, 0) + b"abc", b""]
    host.synic.timer_message()
    assert guest.partition.types[-1] == 0x80000010


@pytest.mark.parametrize(
    "wrong",
    [
        lambda host: host.synic.post(0),
        lambda host: host.synic.post(1, bytes(241)),
        lambda host: host.synic.post(1, vp=1),
        lambda host: host.synic.signal(2048),
        lambda host: host.synic.interrupt(sint=16),
        lambda host: host.synic.slot(),
        lambda host: host.device("no-such"),
        lambda host: host.ring("hv-balloon"),
        lambda host: host.vmbus.relid("no-such"),
        lambda host: host.memory.discard(1, 4096),
        lambda host: host.memory.map(0, 0),
        lambda host: host.memory.map(1 << 40, 4096),
        lambda host: host.memory.unmap(1 << 40),
        lambda host: host.ic.heartbeat,
    ],
)
def test_what_no_host_could_do_is_the_tests_error(host: Host, wrong: Callable[[Host], object]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        wrong(host)


def test_events_and_interrupts_without_a_reason(host: Host, guest: FakeGuest, driver: FakeDriver) -> None:
    before = driver.signals
    driver.take_packet()  # clears the flag
    assert host.vmbus.signal(driver.offer.relid)
    assert driver.signals == before + 1
    host.synic.interrupt()
    assert guest.partition.interrupts == [(0, 2)]


def test_the_ring_is_written_as_given(host: Host, driver: FakeDriver) -> None:
    rings = host.ring()
    start = rings.to_guest.write_index
    rings.send(rings.packet(b"abcdefgh", trailer=False, type=3, length8=99), signal=False)
    assert rings.to_guest.read(start, 4) == pack("<HH", 3, 2)
    assert rings.to_guest.write_index == start + 24
    rings.to_host.write_index = 0x100000
    rings.to_guest.mask = 1
    rings.to_guest.pending = 8
    assert (driver.outgoing.get(0), driver.incoming.get(8), driver.incoming.get(12)) == (0x100000, 1, 8)
    with pytest.raises(ValueError, match="no u32"):
        rings.to_guest.read_index = 1 << 32
    with pytest.raises(ValueError, match="of a ring of"):
        rings.to_guest.write(rings.to_guest.size, b"x")


def test_ic_messages_have_any_header(host: Host, guest: FakeGuest) -> None:
    heartbeat = Heartbeat()
    driver = guest.open(heartbeat).accept_versions()
    host.ic.beat(41, version=(9, 9), size=60000, transaction=77)
    header = IcHeader.parse(driver.incoming.take()[0].payload)  # type: ignore[index]
    assert (header.type, header.version_major, header.size, header.transaction) == (IcType.HEARTBEAT, 9, 60000, 77)
    host.ic.heartbeat.negotiate([(3, 0)], [(3, 0)], counts=(5, 100))
    counts = driver.take_bytes()[:4]
    assert unpack_from("<HH", counts) == (5, 100)
    driver.answer(counts + bytes(4))
    assert host.ic.heartbeat.wait_for().header.type == IcType.NEGOTIATE


def test_a_message_slot_is_overwritten_whether_or_not_it_is_free(guest: FakeGuest) -> None:
    class Partition:
        vp_count = 1
        interrupts = 0

        def interrupt(self, vp: int, sint: int) -> None:
            self.interrupts += 1

    partition = Partition()
    partition.synic = Synic(1, guest.memory, partition.interrupt, masks_known=False)  # type: ignore[attr-defined]
    partition.synic.set_page(0, "simp", 0x5001)  # type: ignore[attr-defined]
    host = Host(Parts(guest.bus, partition, guest.memory, lambda *unused: None))  # type: ignore[arg-type]
    host.synic.overwrite(0x80000010, b"abc", size=255)
    host.synic.overwrite(1, b"de", interrupt=False)
    host.synic.set_pending()
    assert host.synic.slot()[:6] == pack("<IBB", 1, 2, 1)
    assert host.synic.slot()[16:19] == b"dec"
    assert partition.interrupts == 1
