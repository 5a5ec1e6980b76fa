"""The host's end of a hvsock connection on a real socket and loop."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import cast

import pytest

from pyvmm.devices.hvsock import socket_end
from pyvmm.devices.hvsock.connection import Connection
from pyvmm.devices.hvsock.socket_end import SocketEnd
from pyvmm.loop import Loop


class Peer:
    """The connection: counts what it is told."""

    def __init__(self) -> None:
        self.readable = self.drained = 0
        self.lost: list[str] = []

    def host_readable(self) -> None:
        self.readable += 1

    def host_drained(self) -> None:
        self.drained += 1

    def host_lost(self, reason: str) -> None:
        self.lost.append(reason)


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def pair(loop: Loop) -> Iterator[tuple[SocketEnd, Peer, socket.socket]]:
    ours, program = socket.socketpair()
    end, peer = SocketEnd(loop, ours), Peer()
    end.start(cast(Connection, peer))
    program.settimeout(5)
    yield end, peer, program
    end.close(flush=False)
    program.close()


def turns(loop: Loop, done: Callable[[], object]) -> None:
    for _ in range(200):
        if done():
            return
        loop.step(0.05)
    raise AssertionError("it did not come")


def test_data_is_announced_and_read_in_pieces(loop: Loop, pair: tuple[SocketEnd, Peer, socket.socket]) -> None:
    end, peer, program = pair
    assert end.read(5) is None
    program.sendall(b"hello world")
    turns(loop, lambda: peer.readable)
    assert (end.read(5), end.read(100), end.read(1)) == (b"hello", b" world", None)
    program.shutdown(socket.SHUT_WR)
    turns(loop, lambda: peer.readable > 1)
    assert end.read(1) == b"" and not end.gone
    end.want(False)
    program.close()
    assert end.gone


def test_program_that_does_not_read_is_waited_for(loop: Loop, pair: tuple[SocketEnd, Peer, socket.socket]) -> None:
    end, peer, program = pair
    sent = 0
    while end.write(bytes(4096)):
        sent += 4096
    sent += 4096
    end.finish()
    got = 0
    while got < sent:
        loop.step(0)
        got += len(program.recv(1 << 16))
    turns(loop, lambda: peer.drained)
    assert program.recv(1) == b"", "the end comes after all data"


def test_end_that_is_closed_sends_what_it_has(loop: Loop, pair: tuple[SocketEnd, Peer, socket.socket]) -> None:
    end, _, program = pair
    sent = 4096
    while end.write(bytes(4096)):
        sent += 4096
    end.close(flush=True)
    got = 0
    while data := program.recv(1 << 16):
        got += len(data)
        loop.step(0)
    assert got == sent


def test_end_that_nobody_reads_is_closed_in_time(
    loop: Loop, pair: tuple[SocketEnd, Peer, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_end, "FLUSH_SECONDS", 0.05)
    end, _, _ = pair
    while end.write(bytes(4096)):
        pass
    end.close(flush=True)
    turns(loop, lambda: end.gone)


def test_program_that_is_gone_is_told_once(loop: Loop, pair: tuple[SocketEnd, Peer, socket.socket]) -> None:
    end, peer, program = pair
    program.close()
    end.write(b"x")
    end.write(b"x")
    assert peer.lost == ["the host's end: Broken pipe"] and end.gone
    end.want(True)
    end.finish()
