"""The link that keeps the end of a connection until passt has acknowledged its data, and completes a reset."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from struct import pack, unpack_from

import pytest

from pyvmm.loop import Loop
from pyvmm.net import passt_link
from pyvmm.net.checksum import checksum
from pyvmm.net.passt_link import PasstLink

FIN, SYN, RST, ACK = 1, 2, 4, 16
GUEST, SERVER = 40000, 80


class Ends:
    """A link and the socket at its other end, between whom a connection over IPv4 or IPv6 goes on."""

    def __init__(self, *, ipv6: bool = False) -> None:
        ours, self.peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.loop = Loop()
        self.link = PasstLink(self.loop, ours)
        self.link.start(self.link.read, lambda: None, lambda reason: None)
        self.ipv6 = ipv6

    def frame(self, source: int, target: int, sequence: int, seen: int, flags: int, data: bytes = b"") -> bytes:
        tcp = pack(">HHIIBBHHH", source, target, sequence & 0xFFFFFFFF, seen & 0xFFFFFFFF, 0x50, flags, 0, 0, 0)
        low, high = (b"\1", b"\2") if source == GUEST else (b"\2", b"\1")
        if self.ipv6:
            head = b"\x60\0\0\0" + pack(">HBB", 20 + len(data), 6, 64) + low * 16 + high * 16
            return bytes(12) + b"\x86\xdd" + head + tcp + data
        head = pack(">BBHHHBBH", 0x45, 0, 40 + len(data), 0, 0, 64, 6, 0) + low * 4 + high * 4
        return (bytes(12) + b"\x08\x00" + head + tcp + data).ljust(60, b"\0")

    def passt(self, acknowledged: int, flags: int = ACK, *, port: int = GUEST) -> None:
        """passt sends a segment to the guest."""
        frame = self.frame(SERVER, port, 1, acknowledged, flags)
        self.peer.sendall(pack(">I", len(frame)) + frame)
        self.loop.step(0)

    def guest(self, sequence: int, flags: int, data: bytes = b"", *, cut: int = 0) -> None:
        """The guest sends a segment, in two parts with `cut`."""
        frame = memoryview(self.frame(GUEST, SERVER, sequence, 1, flags, data))
        assert self.link.write([[frame[:cut], frame[cut:]] if cut else [frame]]) == 1

    def came(self) -> list[tuple[int, int]]:
        """Return sequence number and flags of what has reached passt."""
        self.peer.setblocking(False)
        found = []
        try:
            while True:
                data = self.peer.recv(1 << 16)
                while data:
                    (size,) = unpack_from(">I", data)
                    tcp = 4 + (54 if self.ipv6 else 34)
                    found.append((unpack_from(">I", data, tcp + 4)[0], data[tcp + 13]))
                    data = data[4 + size :]
        except BlockingIOError:
            return found

    def close(self) -> None:
        self.link.close()
        self.peer.close()
        self.loop.close()


@pytest.fixture(params=[False, True], ids=["ipv4", "ipv6"])
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    made = Ends(ipv6=request.param)
    yield made
    made.close()


@pytest.mark.parametrize("begin", [100, 0xFFFFFFF0])
def test_a_fin_waits_for_the_acknowledgement_of_all_before_it(ends: Ends, begin: int) -> None:
    ends.passt(begin)
    ends.guest(begin, ACK, b"x" * 200)
    ends.guest(begin + 200, FIN | ACK, cut=20)
    assert ends.came() == [(begin, ACK)]
    ends.passt(begin + 199)
    assert ends.came() == [] and ends.link.kept == 1
    ends.passt(begin + 200)
    assert ends.came() == [((begin + 200) & 0xFFFFFFFF, FIN | ACK)] and ends.link.kept == 0


def test_a_fin_behind_acknowledged_data_passes_at_once(ends: Ends) -> None:
    ends.passt(300)
    ends.guest(300, FIN | ACK)
    ends.guest(300, FIN | ACK, cut=14)
    assert ends.came() == [(300, FIN | ACK)] * 2


def test_a_fin_with_data_and_one_of_an_unknown_connection_pass(ends: Ends) -> None:
    ends.guest(500, FIN | ACK)
    ends.passt(100)
    ends.guest(200, FIN | ACK, b"data")
    assert ends.came() == [(500, FIN | ACK), (200, FIN | ACK)]


@pytest.mark.parametrize("flags", [RST, SYN | ACK])
def test_a_kept_fin_is_forgotten_with_its_connection(ends: Ends, flags: int) -> None:
    ends.passt(100)
    ends.guest(200, FIN | ACK)
    ends.passt(900, flags)
    ends.passt(900)
    assert ends.came() == [] and ends.link.kept == 0


@pytest.mark.parametrize("sequence", range(0, 1 << 32, 0x0FFFFFF3))
def test_a_reset_acknowledges_by_its_flag_too(ends: Ends, sequence: int) -> None:
    frame = bytearray(ends.frame(SERVER, GUEST, sequence, 1001, RST))
    tcp = 54 if ends.ipv6 else 34
    frame[tcp + 16 : tcp + 18] = pack(">H", checksum(frame[tcp : tcp + 20]))
    ends.peer.sendall(pack(">I", len(frame)) + frame)
    (came,) = ends.link.read()
    assert came[tcp + 13] == RST | ACK
    assert checksum(bytes(came[tcp : tcp + 20])) == 0


def test_a_repeated_fin_is_kept_once_and_other_connections_do_not_release_it(ends: Ends) -> None:
    ends.passt(100)
    ends.guest(200, FIN | ACK)
    ends.guest(200, FIN | ACK)
    ends.passt(900, port=GUEST + 1)
    assert ends.came() == [] and ends.link.kept == 1
    ends.passt(200)
    assert ends.came() == [(200, FIN | ACK)]


def test_frames_around_a_kept_fin_count_as_they_are_taken(ends: Ends) -> None:
    ends.passt(100)
    data, fin = ends.frame(GUEST, SERVER, 100, 1, ACK, b"x" * 60000), ends.frame(GUEST, SERVER, 200, 1, FIN)
    frames = [[data], [fin], *([data] for _ in range(30)), [fin]]
    taken = ends.link.write(frames)
    assert 2 < taken < len(frames)
    # What was not taken is written again, until all is.
    whole = 0
    ends.peer.setblocking(False)
    while taken < len(frames) or whole < 31 * (4 + len(data)):
        try:
            whole += len(ends.peer.recv(1 << 20))
        except BlockingIOError:
            ends.loop.step(0)
        taken += ends.link.write(frames[taken:])
    assert (taken, whole, ends.link.kept) == (len(frames), 31 * (4 + len(data)), 1)


def test_kept_fins_and_known_connections_are_bounded(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passt_link, "KEPT_LIMIT", 0)
    ends.passt(100)
    ends.guest(200, FIN | ACK)
    ends.passt(200)
    assert ends.came() == []  # the guest repeats it
    monkeypatch.setattr(passt_link, "CONNECTIONS_LIMIT", 2)
    for port in range(3):
        ends.passt(100, port=port)
    ends.guest(300, FIN | ACK)
    assert ends.came() == [(300, FIN | ACK)]
