"""The echo device against a guest played by hand: its commands, shared memory, sub-channels, the monitor page."""

from __future__ import annotations

from itertools import pairwise
from struct import pack

import pytest

from pyvmm.devices.echo import Echo
from pyvmm.devices.echo.device import LATER_LIMIT, PACKETS_PER_TURN
from pyvmm.devices.echo.protocol import MAGIC, Command, Report, Request
from pyvmm.vmbus import protocol as p
from pyvmm.vmbus.monitor_page import PERIOD
from tests.support.fake_guest import FakeDriver, FakeGuest
from tests.support.fake_ring import COMPLETION

DIRECT, PAGES = 9, 7


def ask(driver: FakeDriver, command: int, count: int = 0, size: int = 0, milliseconds: int = 0) -> None:
    driver.send(Request(MAGIC, command, count, size, milliseconds).build())


def test_other_payloads_and_the_command_echo_come_back(guest: FakeGuest) -> None:
    driver = guest.open(Echo())
    driver.send(b"pvm_echx").send(b"")
    assert (driver.take_bytes(), driver.take_bytes()) == (b"pvm_echx", b"")
    ask(driver, Command.ECHO, 7)
    assert Request.parse(driver.take_bytes()).count == 7


def test_sink_counts_and_drops_so_many_packets(guest: FakeGuest) -> None:
    driver = guest.open(Echo())
    ask(driver, Command.SINK, 200)
    for _ in range(200):
        driver.send(bytes(24))
    (report,) = driver.take(Report)
    assert (report.command, report.count, report.size) == (Command.SINK, 200, 4800)
    driver.send(b"answered")
    assert driver.take_bytes() == b"answered"


def test_source_sends_as_fast_as_the_guest_reads_and_leaves_the_loop_its_turns(guest: FakeGuest) -> None:
    driver = guest.open(Echo(), ring_pages=33)
    driver.outgoing.put(Request(MAGIC, Command.SOURCE, 1000, 256).build())
    driver.signal()
    sent = [driver.channel.packets_out]
    while guest.loop.step():
        sent.append(driver.channel.packets_out)
    assert max(b - a for a, b in pairwise(sent)) <= PACKETS_PER_TURN
    assert sent[-1] < 1000, "the ring is full"
    for number in range(1000):
        payload = driver.take_bytes()
        assert (len(payload), payload[:8]) == (256, number.to_bytes(8, "little"))
        guest.loop.run()
    driver.expect_nothing()
    assert driver.channel.queued == 0


def test_source_ends_with_the_channel(guest: FakeGuest) -> None:
    driver = guest.open(Echo(), ring_pages=2)
    ask(driver, Command.SOURCE, 1_000_000, 64)
    guest.reopen().send(b"12345678")
    assert guest.take_bytes() == b"12345678"


def test_later_comes_back_after_its_time_and_is_limited(guest: FakeGuest) -> None:
    driver = guest.open(Echo())
    for number in range(LATER_LIMIT + 1):
        ask(driver, Command.LATER, number, milliseconds=500)
    assert guest.bus.refused["echo"] == 1
    driver.expect_nothing()
    guest.advance(seconds=0.6)
    assert [request.count for request in driver.take(Request, LATER_LIMIT)] == list(range(LATER_LIMIT))
    ask(driver, Command.LATER, 9, milliseconds=1)
    guest.advance(seconds=0.1)
    assert driver.take(Request)[0].count == 9


def test_sub_channels_are_offered_and_echo_apart(guest: FakeGuest) -> None:
    echo = Echo()
    primary = guest.open(echo)
    ask(primary, Command.CHANNELS, 2)
    assert primary.take(Report)[0].count == 2
    first, second = (guest.open(echo, sub_channel=number) for number in (1, 2))
    second.send(b"to the 2")
    first.send(b"to the 1")
    assert (first.take_bytes(), second.take_bytes()) == (b"to the 1", b"to the 2")
    ask(first, Command.CHANNELS, 1)
    assert guest.bus.refused["echo"] == 1


def test_sub_channels_may_be_offered_later(guest: FakeGuest) -> None:
    driver = guest.open(Echo())
    ask(driver, Command.CHANNELS, 2, milliseconds=300)
    guest.advance(seconds=0.2)
    assert len(guest.bus.info()) == 1
    guest.advance(seconds=0.2)
    assert (driver.take(Report)[0].count, len(guest.bus.info())) == (2, 3)


def test_pages_writes_the_guests_buffer_and_waits_for_its_return(guest: FakeGuest) -> None:
    echo = Echo()
    driver = guest.open(echo)
    pages = guest.pages(3)
    handle = guest.lend(driver.offer.relid, pages)
    ask(driver, Command.PAGES, handle, 8200)
    packet = driver.take_packet()
    assert packet is not None
    assert (packet.type, packet.transaction_id) == (PAGES, handle)
    assert packet.descriptor == pack("<HBBIII", 0, 0, 0, 1, 8200, 0)
    written = b"".join(guest.memory.read(page, 4096) for page in pages)
    assert written == bytes(n % 256 for n in range(8200)) + bytes(3 * 4096 - 8200)
    driver.send(b"", type=COMPLETION, transaction_id=handle)
    assert echo.returned == 1


def test_memory_shared_by_a_packet_is_inverted_in_place(guest: FakeGuest) -> None:
    driver = guest.open(Echo())
    page, other = guest.pages(2)
    guest.memory.write(page + 4090, bytes(range(6)))
    guest.memory.write(other, bytes(range(6, 10)))
    descriptor = pack("<IIIIQQ", 0, 1, 10, 4090, page >> 12, other >> 12)
    driver.send(b"", type=DIRECT, flags=1, transaction_id=5, descriptor=descriptor)
    packet = driver.take_packet()
    assert packet is not None and (packet.type, packet.transaction_id) == (COMPLETION, 5)
    found = guest.memory.read(page + 4090, 6) + guest.memory.read(other, 4)
    assert found == bytes(255 - n for n in range(10))


@pytest.mark.parametrize(
    ("command", "count", "size"),
    [
        (6, 0, 0),
        (Command.SINK, 0, 0),
        (Command.SOURCE, 1, 7),
        (Command.SOURCE, 1, 4081),
        (Command.CHANNELS, 65, 0),
        (Command.PAGES, 1, 8),
        (Command.PAGES, 0xE1E10, 8 * 4096 * 10),
        (Command.PAGES, 0xE1E10, 0),
        (Command.PAGES, 0xE1E10, 0xFFFFFFFF),
    ],
)
def test_impossible_commands_are_refused(guest: FakeGuest, command: int, count: int, size: int) -> None:
    driver = guest.open(Echo())
    ask(driver, command, count, size)
    driver.send(MAGIC)
    assert guest.bus.refused["echo"] == 2
    guest.skim()
    driver.send(b"it lives")
    assert driver.take_bytes() == b"it lives"


# The monitor page


MONITOR = 0x3000  # where FakeGuest has its page for signals to the host


def put_quietly(driver: FakeDriver, payload: bytes) -> None:
    """Write a packet and signal by the monitor page: a bit of the group's pending word."""
    assert driver.outgoing.put(payload)
    monitor_id = driver.offer.monitor_id
    driver.guest.memory.set_bit(MONITOR + 8 + monitor_id // 32 * 8, monitor_id % 32)
    driver.guest.loop.run()


def test_a_monitored_channel_is_signalled_by_its_bit_within_a_period(guest: FakeGuest) -> None:
    others = [Echo(monitored=True) for _ in range(40)]
    for number, each in enumerate(others):
        each.number = number
        guest.bus.add(each)
    driver = guest.open(others[35])
    assert (driver.offer.monitor_allocated, driver.offer.monitor_id) == (1, 35)
    put_quietly(driver, b"12345678")
    driver.expect_nothing()
    guest.advance(seconds=PERIOD)
    assert driver.take_bytes() == b"12345678"
    assert guest.memory.read(MONITOR + 8, 32) == bytes(32), "the bit is clear again"
    guest.memory.write(MONITOR + 8, b"\xff" * 32)
    guest.advance(seconds=PERIOD)
    assert guest.memory.read(MONITOR + 8, 32) == b"\xff" * 8 + bytes(4) + b"\xff" * 20, "one pending word"


def test_other_devices_have_no_monitor_bit_and_nothing_is_polled(guest: FakeGuest) -> None:
    driver = guest.open(Echo())
    assert (driver.offer.monitor_allocated, driver.offer.monitor_id) == (0, 0)
    guest.memory.write(MONITOR + 8, b"\xff" * 32)
    guest.advance(seconds=1)
    assert guest.memory.read(MONITOR + 8, 32) == b"\xff" * 32


def test_the_page_is_looked_at_only_while_a_monitored_channel_is_open(guest: FakeGuest) -> None:
    driver = guest.open(Echo(monitored=True))
    guest.close()
    guest.memory.write(MONITOR + 8, b"\x01")
    guest.advance(seconds=1)
    assert guest.memory.read(MONITOR + 8, 1) == b"\x01"
    guest.open(driver.device)
    guest.unload()
    guest.advance(seconds=1)
    guest.connect()
    driver = guest.open(driver.device)
    put_quietly(driver, b"12345678")
    guest.advance(seconds=1)
    assert driver.take_bytes() == b"12345678"


@pytest.mark.parametrize("page", [0, 1 << 30, (1 << 64) - 4096])
def test_a_guest_without_a_usable_monitor_page_is_not_signalled_for(guest: FakeGuest, page: int) -> None:
    guest.request(p.InitiateContact(0x50003, 0, 2, page, page), 4)
    guest.message_connection = guest.expect(p.VersionResponse).connection_id
    guest.bus.add(Echo(monitored=True))
    guest.request_offers()
    guest.connected = True
    driver = guest.open(guest.bus.devices()[0])
    guest.advance(seconds=1)
    driver.send(b"12345678")
    assert driver.take_bytes() == b"12345678", "a hypercall works all the same"


def test_a_sub_channel_of_a_monitored_device_has_a_bit_of_its_own(guest: FakeGuest) -> None:
    echo = Echo(monitored=True)
    primary = guest.open(echo)
    ask(primary, Command.CHANNELS, 1)
    primary.take(Report)
    sub = guest.open(echo, sub_channel=1)
    assert (primary.offer.monitor_id, sub.offer.monitor_id) == (0, 1)
    put_quietly(sub, b"12345678")
    guest.advance(seconds=PERIOD)
    assert sub.take_bytes() == b"12345678"
