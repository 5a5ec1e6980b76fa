"""A bounded connection: steps a turn, pauses for output, waits, and the ways in which it ends."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyvmm.bounded_connection import BoundedConnection, Limits
from pyvmm.loop import Loop

LIMITS = Limits(chunk=64, steps=3, pause=1000, output=1 << 20)


class Server:
    """One client: each byte is a piece of input, handled by `handle`."""

    def __init__(self, loop: Loop, limits: Limits) -> None:
        self.loop = loop
        self.theirs, ours = socket.socketpair()
        self.theirs.setblocking(False)
        self.input = bytearray()
        self.handled = bytearray()
        self.reasons: list[str] = []
        self.is_waiting = False
        self.handle: Callable[[int], Any] = lambda byte: None
        self.connection = BoundedConnection(
            loop,
            ours,
            limits,
            feed=self.input.extend,
            step=self.step,
            closed=self.reasons.append,
            waiting=lambda: self.is_waiting,
        )
        self.connection.start()

    def step(self) -> bool:
        if not self.input or self.is_waiting:
            return False
        self.handled.append(self.input.pop(0))
        self.handle(self.handled[-1])
        return True

    def turns(self, count: int = 20) -> None:
        for _ in range(count):
            self.loop.step(0)


Make = Callable[..., Server]


@pytest.fixture
def make() -> Iterator[Make]:
    loop, made = Loop(), []

    def one(limits: Limits = LIMITS) -> Server:
        made.append(Server(loop, limits))
        return made[-1]

    yield one
    for each in made:
        each.connection.close("end")
        each.theirs.close()
    loop.close()


def test_a_turn_makes_few_steps_and_the_rest_follows(make: Make) -> None:
    server = make()
    server.theirs.send(b"12345678")
    server.loop.step(0)
    assert server.handled == b"123456", "three when it reads, and three of what is posted"
    server.turns(3)
    assert server.handled == b"12345678"
    server.theirs.send(b"9")
    server.turns(2)
    assert server.handled == b"123456789"


def test_a_turn_ends_after_the_step_that_takes_long(make: Make) -> None:
    server = make(Limits(chunk=64, steps=3, pause=1000, seconds=0.01))
    server.handle = lambda byte: time.sleep(0.02)
    server.theirs.send(b"1234")
    server.loop.step(0)
    assert server.handled == b"12"
    server.turns(4)
    assert server.handled == b"1234"


def test_a_flood_is_read_a_chunk_at_a_time(make: Make) -> None:
    server = make()
    server.theirs.send(bytes(5000))
    server.turns(10)
    assert len(server.input) <= LIMITS.chunk
    assert 10 <= len(server.handled) <= 2 * LIMITS.steps * 10


def test_a_client_that_does_not_read_is_not_served_until_it_does(make: Make) -> None:
    server = make()
    server.handle = lambda byte: server.connection.send(bytes(100_000))
    server.theirs.send(b"1" * 50)
    server.turns()
    served = len(server.handled)
    assert 0 < served < 50
    assert not server.connection.is_ready
    server.turns()
    assert len(server.handled) == served
    got = 0
    until = time.monotonic() + 20
    while len(server.handled) < 50 and time.monotonic() < until:
        got += len(server.theirs.recv(1 << 20))
        server.turns(3)
    assert (len(server.handled), server.reasons) == (50, [])


def test_too_much_output_disconnects_in_the_next_turn(make: Make) -> None:
    server = make()
    for _ in range(30):
        server.connection.send(bytes(100_000))
    assert (server.connection.is_open, server.connection.queued, server.reasons) == (False, 0, [])
    server.turns(1)
    assert server.reasons == ["does not read"]
    server.connection.close("again")
    assert server.reasons == ["does not read"]


def test_nothing_is_read_while_a_step_waits(make: Make) -> None:
    server = make()

    def begin(byte: int) -> None:
        server.is_waiting = byte == ord("w")

    server.handle = begin
    server.theirs.send(b"1w2")
    server.turns()
    server.theirs.send(b"3")
    server.turns()
    assert (server.handled, server.input) == (b"1w", b"2")
    server.is_waiting = False
    server.connection.proceed()
    server.turns()
    assert server.handled == b"1w23"


@pytest.mark.parametrize("how", ["close", "finish"])
def test_output_queued_before_the_end_reaches_the_client(make: Make, how: str) -> None:
    server = make()

    def end(byte: int) -> None:
        server.connection.send(b"bye")
        getattr(server.connection, how)("ended")

    server.handle = end
    server.theirs.send(b"12")
    server.turns()
    assert (server.handled, server.reasons) == (b"1", ["ended"])
    assert (server.theirs.recv(10), server.theirs.recv(10)) == (b"bye", b"")


def test_a_client_that_leaves_or_breaks_is_closed_once(make: Make) -> None:
    server, other = make(), make()
    server.theirs.close()
    server.turns(2)
    assert server.reasons == ["hung up"]
    other.theirs.close()
    other.connection.send(b"lost")
    other.connection.send(b"lost, too")
    other.turns(2)
    assert len(other.reasons) == 1 and "Broken pipe" in other.reasons[0]


def test_a_released_socket_stays_open_and_is_not_read(make: Make) -> None:
    server = make()
    given: list[socket.socket] = []
    server.handle = lambda byte: given.append(server.connection.release())
    server.theirs.send(b"12")
    server.turns()
    assert (server.handled, server.reasons, server.connection.is_open) == (b"1", [], False)
    server.theirs.send(b"3")
    server.turns()
    with given[0]:
        assert given[0].recv(10) == b"3"
