"""Hyper-V sockets, sessions and shared folders: what a guest sends over them."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from struct import pack

from pyvmm.devices.hvsock.connection import Connection, HostEnd
from pyvmm.devices.hvsock.protocol import FIN, build_packet, port_guid
from pyvmm.devices.hvsock.sockets import Sockets
from pyvmm.errors import GuestProtocolError
from pyvmm.session_protocol import FrameReader
from pyvmm.share.folder import Folder
from pyvmm.share.operations import Operations
from pyvmm.share.protocol import Op, Owners, Request, parse_header
from pyvmm.vmbus import protocol as p
from tests.fuzz.feed import Feed
from tests.support.fake_guest import FakeDriver, FakeGuest


class _Program:
    """A program on the host that sends for ever, and takes as the feed says."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self.gone = False
        self.connection: Connection | None = None

    def start(self, connection: Connection) -> None:
        self.connection = connection

    def want(self, on: bool) -> None:
        pass

    def read(self, limit: int) -> bytes | None:
        return self._feed.choice((bytes(limit), b"x", b"x", None, b""))

    def write(self, data: bytes) -> bool:
        return self._feed.flag()

    def finish(self) -> None:
        pass

    def close(self, *, flush: bool) -> None:
        pass


def sockets(data: bytes) -> None:
    """Requests to connect, packets, and channels closed, while programs of the host connect, send and end."""
    feed = Feed(data)
    guest = FakeGuest(memory_mib=4).connect()
    programs: list[_Program] = []

    def program() -> _Program:
        programs.append(_Program(feed))
        return programs[-1]

    def answer(port: int) -> HostEnd | None:
        return program() if port % 3 else None

    made = Sockets(guest.bus, lambda port, done: done(answer(port)))
    drivers: list[FakeDriver] = []
    while feed:
        match feed.below(8):
            case 0:
                names = port_guid(feed.below(6)), port_guid(feed.below(6))
                guest.request(p.TlConnectRequest(*names))
            case 1:
                made.connect(feed.below(9) - 1, answer, lambda reason: None)
                guest.loop.run()
            case 2 | 3:
                waiting = [d for d in guest.bus.devices() if isinstance(d, Connection) and not d.was_opened]
                if waiting and len(drivers) < 20:
                    guest.skim()
                    with suppress(AssertionError):  # the bus, or the guest's memory, is full
                        drivers.append(guest.open(waiting[0], ring_pages=3))
            case 4 | 5 if drivers:
                driver = feed.choice(drivers)
                packet = feed.choice((FIN, build_packet(feed.take(9)), pack("<II", feed.below(3), feed.below(99))))
                if driver.outgoing.put(packet) is not None:
                    guest.partition.hypercall_signal(driver.offer.connection_id)  # which may be rescinded
                guest.loop.run()
            case 6 if programs:
                each = feed.choice(programs)
                each.gone = feed.flag()
                if each.connection is not None:
                    feed.choice((each.connection.host_readable, each.connection.host_drained))()
                guest.loop.run()
            case _:
                guest.advance(feed.below(5))
                guest.skim()
    guest.reset()
    assert not len(made)


@cache
def _root() -> int:
    folder = Path(tempfile.mkdtemp(prefix="share-"))
    (folder / "file").write_text("x" * 1000)
    (folder / "sub").mkdir()
    (folder / "out").symlink_to("/")
    root = os.open(folder, os.O_PATH)
    os.set_inheritable(root, False)
    return root


def share(data: bytes) -> None:
    """FUSE's requests: names, numbers and lengths as they come."""
    feed = Feed(data)
    operations = Operations(Folder(_root()), Owners(0, 0), read_only=False)
    try:
        while feed:
            with suppress(GuestProtocolError):
                if feed.below(9) == 0:
                    parse_header(feed.take(40))
                name = feed.choice((b"file", b"sub", b"out", b"..", b"a/b", feed.take(2))) + b"\0"
                head = feed.take(feed.choice((0, 0, 4, 8, 16, 40, 88)))
                op = feed.choice((*(each for each in Op if each is not Op.FALLOCATE), feed.below(60)))
                operations.handle(Request(op, 1, feed.below(5), head + name + name))
    finally:
        operations.close()


def session(data: bytes) -> None:
    """What the guest's program for sessions sends."""
    with suppress(GuestProtocolError):
        reader = FrameReader()
        for at in range(0, len(data), 7):
            list(reader.feed(data[at : at + 7]))


TARGETS = {"guest_hvsock": sockets, "guest_share": share, "guest_session": session}
