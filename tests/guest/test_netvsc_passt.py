"""A TCP connection by hand through the card and a real passt, which does not miss what the card leaves undone.

The guest's checksums are only begun, and its data is one large send; passt must take both.
"""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Callable, Iterator
from struct import pack, unpack_from
from typing import cast

import pytest

from pyvmm.devices.netvsc import Card, Netvsc
from pyvmm.loop import Loop
from pyvmm.net.checksum import checksum
from pyvmm.net.passt import GATEWAY, GUEST, Passt
from pyvmm.net.passt_link import PasstLink
from pyvmm.net.spec import parse_net
from tests.support.fake_guest import FakeGuest
from tests.support.net_guest import MAC, FakeLink, NetGuest, info

pytestmark = pytest.mark.skipif(shutil.which("passt") is None, reason="passt is not installed")
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
US, HOST = socket.inet_aton(GUEST), socket.inet_aton(GATEWAY)
HOST_MAC = bytes.fromhex("52550a000202")
PORT = 40000


class Connection:
    """The guest's side of a TCP connection to the host's port."""

    def __init__(self, card: NetGuest, loop: Loop, port: int) -> None:
        self.card, self.loop, self.port = card, loop, port
        self.next, self.seen = 1000, 0
        self.data = b""
        self.refused = False

    def send(self, flags: int, data: bytes = b"", *, large: bool = False) -> None:
        """Send a segment; IP's length and the rest of TCP's checksum are the card's if it is `large`."""
        options = b"\x02\x04\x05\xb4" if flags & SYN else b""
        size = 20 + len(options) + len(data)
        begun = ~checksum(US + HOST + pack(">HH", 6, 0 if large else size)) & 0xFFFF
        head = (20 + len(options)) // 4 << 4
        tcp = pack(">HHIIBBHHH", PORT, self.port, self.next, self.seen, head, flags, 65535, begun, 0) + options + data
        ip = pack(">BBHHHBBH4s4s", 0x45, 0, 0 if large else 20 + size, 0, 0, 64, 6, 0, US, HOST)
        if not large:
            ip = ip[:10] + pack(">H", checksum(ip)) + ip[12:]
        offload = info(2, 1460 | 34 << 20 | 1 << 30) if large else info(0, 5 | 34 << 16)
        self.card.send(HOST_MAC + MAC + b"\x08\x00" + ip + tcp, info=offload, pieces=min(9, 1 + size // 4000))
        self.next += len(data) + bool(flags & (SYN | FIN))

    def read(self) -> None:
        """Take what came, and acknowledge data."""
        for frame in self.card.frames():
            if frame[12:14] != b"\x08\x00" or frame[23] != 6 or unpack_from(">H", frame, 36) != (PORT,):
                continue
            sequence, acknowledged, head, flags = unpack_from(">IIBB", frame, 38)
            self.refused = bool(flags & RST)
            if self.refused:
                assert (flags, acknowledged) == (RST | ACK, self.next)
                return
            data = frame[34 + (head >> 4) * 4 : 14 + unpack_from(">H", frame, 16)[0]]
            if flags & SYN:
                self.seen = sequence + 1
            elif data and sequence == self.seen:
                self.data += data
                self.seen += len(data)
                self.send(ACK)
            self.acknowledged = acknowledged

    def until(self, happened: Callable[[], object]) -> None:
        """Run both loops until something is so."""
        limit = time.monotonic() + 10
        while not happened():
            assert time.monotonic() < limit, "nothing came"
            self.loop.step(0.02)
            self.card.guest.loop.run()
            self.read()


@pytest.fixture
def closed() -> Iterator[Connection]:
    """A guest's side of a connection through passt to a port that nothing listens on."""
    loop, guest = Loop(), FakeGuest()
    passt = Passt(parse_net("user"), MAC)
    link = PasstLink(loop, passt.socket)
    try:
        passt.wait()
        card = NetGuest(guest, cast(FakeLink, link), device=Netvsc(link, Card(MAC, "card")))
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            yield Connection(card, loop, unused.getsockname()[1])
    finally:
        link.close()
        passt.close()
        loop.close()


@pytest.fixture
def tcp(closed: Connection) -> Iterator[tuple[Connection, socket.socket]]:
    """An open connection, and the server's end of it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed.port = server.getsockname()[1]
        closed.send(SYN)
        closed.until(lambda: closed.seen)
        closed.send(ACK)
        caller, _ = server.accept()
        with caller:
            yield closed, caller


def test_a_connection_through_passt_carries_data_both_ways(tcp: tuple[Connection, socket.socket]) -> None:
    guest, caller = tcp
    sent = bytes(n * 31 & 0xFF for n in range(40_000))
    guest.send(ACK | PSH, sent, large=True)
    guest.until(lambda: guest.acknowledged == guest.next)
    got = b""
    while len(got) < len(sent):
        got += caller.recv(1 << 16)
    assert got == sent
    caller.sendall(sent)
    guest.until(lambda: len(guest.data) == len(sent))
    assert guest.data == sent


def test_data_lost_before_a_fin_still_arrives(tcp: tuple[Connection, socket.socket]) -> None:
    guest, caller = tcp
    guest.send(ACK | PSH, b"first ")
    guest.until(lambda: guest.acknowledged == guest.next)
    lost = guest.next
    guest.next += 6
    guest.send(FIN | ACK)  # passt alone takes it, and the lost bytes never arrive
    guest.loop.step(0.1)
    guest.next = lost
    guest.send(ACK | PSH, b"second")
    guest.until(lambda: guest.acknowledged == guest.next + 1)
    caller.settimeout(10)
    got = b""
    while part := caller.recv(1 << 16):
        got += part
    assert got == b"first second"


def test_a_closed_port_refuses_so_that_linux_understands(closed: Connection) -> None:
    closed.send(SYN)
    closed.until(lambda: closed.refused)
