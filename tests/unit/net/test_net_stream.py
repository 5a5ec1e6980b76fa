"""Frames over a stream socket, cut and joined anywhere."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from struct import pack, unpack_from

import pytest

from pyvmm.loop import Loop
from pyvmm.net.link import FRAME_LIMIT
from pyvmm.net.stream import READ_SIZE, StreamLink


class Ends:
    """A link and the socket at its other end."""

    def __init__(self) -> None:
        ours, self.peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.loop = Loop()
        self.link = StreamLink(self.loop, ours, "test")
        self.got: list[bytes] = []
        self.ended: list[str] = []
        self.rooms = 0
        self.link.start(self._frames, self._room, self.ended.append)

    def _frames(self) -> None:
        self.got += [bytes(each) for each in self.link.read()]

    def _room(self) -> None:
        self.rooms += 1

    def turn(self) -> None:
        self.loop.step(0)

    def close(self) -> None:
        self.link.close()
        self.peer.close()
        self.loop.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()


def framed(*frames: bytes) -> bytes:
    return b"".join(pack(">I", len(each)) + each for each in frames)


def test_frames_come_whole_however_the_stream_is_cut(ends: Ends) -> None:
    frames = [bytes([n]) * (n * 37 + 1) for n in range(60)]
    stream = framed(*frames)
    for at in range(0, len(stream), 101):
        ends.peer.sendall(stream[at : at + 101])
        ends.turn()
    assert ends.got == frames


def test_more_than_the_buffer_holds_comes_in_turns(ends: Ends) -> None:
    frames = [bytes([n]) * FRAME_LIMIT for n in range(6)]
    assert len(framed(*frames)) > READ_SIZE
    stream = memoryview(framed(*frames))
    ends.peer.setblocking(False)
    while len(ends.got) < len(frames):
        if stream:
            stream = stream[ends.peer.send(stream[: 1 << 16]) :]
        ends.turn()
    assert ends.got == frames


@pytest.mark.parametrize("size", [0, FRAME_LIMIT + 1, 0xFFFFFFFF])
def test_an_impossible_length_ends_the_link(ends: Ends, size: int) -> None:
    ends.peer.sendall(pack(">I", size) + bytes(100))
    ends.turn()
    assert ends.ended == [f"it sent a frame of {size} bytes"]
    assert not ends.link.alive
    assert ends.link.write([[b"into the void"]]) == 1


def test_the_peers_end_is_reported_once(ends: Ends) -> None:
    ends.peer.close()
    ends.turn()
    ends.turn()
    assert ends.ended == ["it has closed the connection"]


def test_a_full_socket_takes_a_part_and_the_rest_later(ends: Ends) -> None:
    frames = [bytes([n]) * 60_000 for n in range(40)]
    sent = ends.link.write([[each[:100], memoryview(each)[100:]] for each in frames])
    assert 0 < sent < len(frames)
    got = b""
    ends.peer.settimeout(5)
    while len(got) < sent * 60_004:
        got += ends.peer.recv(1 << 20)
        while ends.rooms:
            ends.rooms = 0
            sent += ends.link.write([[each] for each in frames[sent:]])
        ends.turn()
    assert sent == len(frames)
    assert got == framed(*frames)


def test_many_parts_need_several_writes(ends: Ends) -> None:
    frames = [[b"x"] * 30 for _ in range(100)]
    assert ends.link.write(frames) == 100
    ends.turn()
    got = ends.peer.recv(1 << 20)
    assert (len(got), unpack_from(">I", got)) == (3400, (30,))


def test_a_held_link_is_not_read(ends: Ends) -> None:
    ends.link.hold()
    ends.peer.sendall(framed(b"frame"))
    ends.turn()
    assert ends.got == []
    ends.link.go_on()
    ends.turn()
    assert ends.got == [b"frame"]
