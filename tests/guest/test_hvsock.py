"""Hyper-V sockets against a guest that is played: both directions, half-close, back pressure, limits, the end."""

from __future__ import annotations

from collections.abc import Callable
from struct import pack, unpack_from
from uuid import UUID

import pytest

from pyvmm.devices.hvsock.connection import Connection, HostEnd
from pyvmm.devices.hvsock.protocol import FIN, build_packet, port_guid
from pyvmm.devices.hvsock.sockets import (
    CONNECTIONS_LIMIT,
    FIRST_HOST_PORT,
    GUEST_OPEN_SECONDS,
    HOST_OPEN_SECONDS,
    PENDING_LIMIT,
    Sockets,
)
from pyvmm.vmbus import protocol as p
from tests.support.fake_clock import FakeLoop
from tests.support.fake_guest import FakeDriver, FakeGuest
from tests.support.fake_ring import PENDING


class FakeEnd:
    """A program on the host: `to_guest` is what it has sent, None at its end stands for its FIN."""

    loop: FakeLoop

    def __init__(self, *to_guest: bytes | None) -> None:
        self.to_guest = list(to_guest)
        self.from_guest = b""
        self.takes = True
        self.wanted = self.finished = self.closed = self.gone = False
        self.connection: Connection | None = None

    def start(self, connection: Connection) -> None:
        self.connection = connection
        self.want(True)

    def want(self, on: bool) -> None:
        self.wanted = on

    def work(self) -> None:
        """What the loop does while the descriptor is readable."""
        assert self.connection is not None
        for _ in range(100):
            if not self.wanted or not self.to_guest:
                break
            self.connection.host_readable()
        self.loop.run()

    def read(self, limit: int) -> bytes | None:
        if not self.to_guest:
            return None
        data = self.to_guest.pop(0)
        if data is None:
            return b""
        if data[limit:]:
            self.to_guest.insert(0, data[limit:])
        return data[:limit]

    def write(self, data: bytes) -> bool:
        self.from_guest += data
        return self.takes

    def finish(self) -> None:
        self.finished = True

    def close(self, *, flush: bool) -> None:
        self.closed, self.wanted = True, False


class Host:
    """The host's programs, by port."""

    def __init__(self, guest: FakeGuest) -> None:
        self.programs: dict[int, FakeEnd] = {}
        self.slow: list[Callable[[HostEnd | None], None]] = []
        self.sockets = Sockets(guest.bus, self.dial)
        self.answers: list[int | str] = []

    def connect(self, port: int, end: FakeEnd | None) -> None:
        def attach(host_port: int) -> FakeEnd | None:
            self.answers.append(host_port)
            return end

        self.sockets.connect(port, attach, self.answers.append)

    def dial(self, port: int, done: Callable[[HostEnd | None], None]) -> None:
        if port == 99:
            self.slow.append(done)
        else:
            done(self.programs.get(port))


@pytest.fixture
def host(guest: FakeGuest) -> Host:
    guest.connect()
    FakeEnd.loop = guest.loop
    return Host(guest)


def request(guest: FakeGuest, guest_port: int, host_port: int) -> None:
    guest.request(p.TlConnectRequest(port_guid(guest_port), port_guid(host_port)))


def newest(guest: FakeGuest) -> Connection:
    found = guest.bus.devices()[-1]
    assert isinstance(found, Connection)
    return found


def connected(guest: FakeGuest, host: Host, end: FakeEnd) -> FakeDriver:
    """A connection of the guest's port 1024 to port 7, where `end` is."""
    host.programs[7] = end
    request(guest, 1024, 7)
    return guest.open(newest(guest), ring_pages=7)


def data(driver: FakeDriver) -> bytes:
    """All that is in the guest's ring; asserts the form of the packets."""
    found = b""
    while (packet := driver.take_packet()) is not None:
        kind, size = unpack_from("<II", packet.payload)
        assert kind == 1 and packet.type == 6 and size <= len(packet.payload) - 8 < size + 8
        found += packet.payload[8 : 8 + size] or b"<FIN>"
    return found


def test_guest_connects_and_data_passes_both_ways(guest: FakeGuest, host: Host) -> None:
    end = FakeEnd(b"welcome")
    driver = connected(guest, host, end)
    offer = driver.offer
    assert (offer.device_type, offer.instance) == (port_guid(7), port_guid(1024))
    assert offer.flags & 0x2000 and offer.user_defined[4] == 0
    driver.send(build_packet(b"hello"))
    end.work()
    assert end.from_guest == b"hello" and data(driver) == b"welcome"


def test_host_connects_to_a_listening_guest(guest: FakeGuest, host: Host) -> None:
    end = FakeEnd(b"question")
    host.connect(5000, end)
    guest.loop.run()
    driver = guest.open(newest(guest), ring_pages=7)
    assert driver.offer.device_type == port_guid(5000) and driver.offer.user_defined[4] == 1
    assert host.answers == [FIRST_HOST_PORT] and driver.offer.instance == port_guid(FIRST_HOST_PORT)
    end.work()
    assert data(driver) == b"question"


def test_program_that_is_gone_before_the_guest_has_accepted(guest: FakeGuest, host: Host) -> None:
    host.connect(5000, None)
    guest.loop.run()
    driver = guest.open(newest(guest), ring_pages=7)
    assert not len(host.sockets)
    guest.accept_rescind(driver)


def test_guest_without_a_listener_is_given_up(guest: FakeGuest, host: Host) -> None:
    end = FakeEnd()
    host.connect(5000, end)
    guest.loop.run()
    guest.skim().advance(HOST_OPEN_SECONDS + 0.1)
    assert host.answers == ["no program in the guest listens"] and not end.closed and not len(host.sockets)
    guest.accept_rescind()


def test_host_connects_to_a_guest_that_is_not_there(guest: FakeGuest) -> None:
    host = Host(guest)
    host.connect(1, FakeEnd())
    assert "VMBus" in str(host.answers[0])
    old = FakeGuest(version=0x30000).connect()
    host = Host(old)
    host.connect(1, FakeEnd())
    host.connect(-1, FakeEnd())
    assert "VMBus" in str(host.answers[0]) and host.answers[1] == "-1 is no port"


def test_port_without_a_program_is_refused(guest: FakeGuest, host: Host) -> None:
    request(guest, 1024, 8)
    assert guest.expect(p.TlConnectResult).status == p.Status.CONNECTION_REFUSED
    assert not len(host.sockets)


def test_names_that_are_no_ports_are_refused(guest: FakeGuest, host: Host) -> None:
    host.programs[7] = FakeEnd()
    for endpoint, service in ((UUID(int=1), port_guid(7)), (port_guid(1), UUID(int=7 << 96))):
        guest.request(p.TlConnectRequest(endpoint, service))
        assert guest.expect(p.TlConnectResult).status == p.Status.CONNECTION_REFUSED


def test_second_connection_from_the_same_end_is_refused(guest: FakeGuest, host: Host) -> None:
    connected(guest, host, FakeEnd())
    host.programs[8] = FakeEnd()
    request(guest, 1024, 8)
    assert guest.expect(p.TlConnectResult).status == p.Status.CONNECTION_REFUSED


def test_guest_that_gave_up_does_not_keep_the_program(guest: FakeGuest, host: Host) -> None:
    end = host.programs[7] = FakeEnd()
    request(guest, 1024, 7)
    guest.skim().advance(GUEST_OPEN_SECONDS + 0.1)
    assert end.closed and not len(host.sockets)
    guest.accept_rescind()


def test_each_side_ends_its_own_direction(guest: FakeGuest, host: Host) -> None:
    end = FakeEnd()
    driver = connected(guest, host, end)
    driver.send(build_packet(b"request")).send(FIN)
    assert end.finished and not end.closed
    end.to_guest += [b"answer", None]
    end.work()
    assert data(driver) == b"answer<FIN>"
    assert end.closed and not len(host.sockets)
    guest.accept_rescind(driver)


def test_host_may_end_first(guest: FakeGuest, host: Host) -> None:
    end = FakeEnd(b"all", None)
    driver = connected(guest, host, end)
    end.work()
    assert data(driver) == b"all<FIN>" and not end.wanted
    driver.send(build_packet(b"still"))
    assert end.from_guest == b"still" and not end.closed
    driver.send(FIN)
    assert end.closed
    guest.accept_rescind(driver)


def test_program_that_is_gone_ends_the_connection(guest: FakeGuest, host: Host) -> None:
    end = FakeEnd(b"last words", None)
    driver = connected(guest, host, end)
    end.gone = True
    end.work()
    guest.advance(0.9)
    assert len(host.sockets) == 1, "Linux reports ENODEV for a write that a RESCIND overtakes"
    guest.advance(0.2)
    assert not len(host.sockets)
    assert data(driver) == b"last words<FIN>"  # readable after the RESCIND
    guest.accept_rescind(driver)


def test_lost_program_ends_the_connection_at_once(guest: FakeGuest, host: Host) -> None:
    end = FakeEnd()
    driver = connected(guest, host, end)
    assert end.connection is not None
    end.connection.host_lost("reset")
    assert not len(host.sockets)
    guest.accept_rescind(driver)


def test_guest_that_reads_nothing_stops_the_program_only(guest: FakeGuest, host: Host) -> None:
    sent = bytes(range(256)) * 400
    end = FakeEnd(sent)
    driver = connected(guest, host, end)
    end.work()
    assert not end.wanted and len(end.to_guest[0] or b"") > 70_000
    assert driver.channel.queued == 0
    got = b""
    while len(got) < len(sent):
        got += data(driver)
        end.work()
    assert got == sent


def test_program_that_reads_nothing_stops_the_guest_only(guest: FakeGuest, host: Host) -> None:
    end = FakeEnd()
    end.takes = False
    driver = connected(guest, host, end)
    driver.outgoing.set(PENDING, 4120)
    for _ in range(100):
        if driver.outgoing.put(build_packet(bytes(2000))) is None:
            break
        driver.signal()
        guest.loop.run()
    else:
        raise AssertionError("the ring never filled")
    kept = len(end.from_guest)
    assert kept <= 20_000
    end.takes = True
    assert end.connection is not None
    before = driver.signals
    end.connection.host_drained()
    guest.loop.run()
    assert len(end.from_guest) > kept and driver.signals == before + 1


def test_guest_that_closed_and_reads_nothing_is_given_up(guest: FakeGuest, host: Host) -> None:
    end = FakeEnd(bytes(100_000))
    driver = connected(guest, host, end)
    end.work()
    driver.send(FIN)
    guest.advance(9.0)
    assert len(host.sockets)
    guest.advance(12.0)
    assert end.closed and not len(host.sockets)


@pytest.mark.parametrize("packet", [pack("<II", 2, 1) + bytes(8), pack("<II", 1, 9) + bytes(8), b"", bytes(8)])
def test_bad_packet_breaks_this_connection_only(guest: FakeGuest, host: Host, packet: bytes) -> None:
    end = FakeEnd()
    driver = connected(guest, host, end)
    driver.send(packet)
    assert end.closed and not len(host.sockets) and guest.bus.refused["hvsock"] == 1
    guest.accept_rescind(driver)


def test_packet_after_the_fin_breaks_the_connection(guest: FakeGuest, host: Host) -> None:
    end = FakeEnd()
    connected(guest, host, end).send(FIN).send(build_packet(b"more"))
    assert end.closed and not len(host.sockets) and end.from_guest == b""


@pytest.mark.parametrize("how", ["reset", "unload", "connect", "close"])
def test_nothing_outlives_the_guests_kernel(guest: FakeGuest, host: Host, how: str) -> None:
    end, pending = FakeEnd(), FakeEnd()
    driver = connected(guest, host, end)
    host.connect(5000, pending)
    guest.loop.run()
    guest.skim()
    if how == "close":
        guest.request(p.CloseChannel(driver.offer.relid))
        assert end.closed and len(host.sockets) == 1
        return
    getattr(guest, how)()
    if how == "unload":
        guest.connect()
    assert end.closed and not pending.closed
    if how == "reset":
        guest.connect()
    assert not len(host.sockets) and host.answers == ["the guest's kernel left the VMBus"]
    assert not [each for each in guest.offers if each.flags & 0x2000]


def test_program_that_answers_after_a_new_kernel_is_closed(guest: FakeGuest, host: Host) -> None:
    request(guest, 1024, 99)
    guest.connect()
    end = FakeEnd()
    host.slow[0](end)
    assert end.closed and not len(host.sockets)


def test_connections_being_made_are_limited(guest: FakeGuest, host: Host) -> None:
    for number in range(PENDING_LIMIT + 5):
        request(guest, 1024 + number, 99)
    assert len(host.slow) == PENDING_LIMIT
    assert sum(message[0] == p.MessageType.TL_CONNECT_RESULT for _, message in guest.inbox) == 5
    host.connect(1, FakeEnd())
    assert "being made" in str(host.answers[0])


def test_connections_are_limited_with_those_that_the_guest_keeps(guest: FakeGuest, host: Host) -> None:
    for number in range(CONNECTIONS_LIMIT):
        host.programs[7] = FakeEnd()
        request(guest, 1024 + number, 7)
        connection = newest(guest)
        connection.break_off("test")  # rescinded; the guest does not release it
    request(guest, 9, 7)
    guest.skim()
    assert not len(host.sockets)
    host.connect(1, FakeEnd())
    assert str(CONNECTIONS_LIMIT) in str(host.answers[0])
    guest.connect()
    host.connect(1, FakeEnd())
    assert len(host.sockets) == 1
