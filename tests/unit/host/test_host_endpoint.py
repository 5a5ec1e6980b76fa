"""Two ends of a port in one process: what goes in at one comes out at the other."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import pytest

from pyvmm.errors import HostError
from pyvmm.host.client import Request, run_command
from pyvmm.host.endpoint import Disconnected, Endpoint
from pyvmm.host.protocol import WINDOW, Decoder, Frame, Kind


class Ends:
    """A pair of endpoints, stepped in turn."""

    def __init__(self) -> None:
        self.sockets = socket.socketpair()
        self.near, self.far = (Endpoint(end.fileno()) for end in self.sockets)
        self.frames: list[Frame] = []

    def turn(self, times: int = 8) -> None:
        for _ in range(times):
            self.near.step(0)
            self.frames += self.far.step(0)


@pytest.fixture
def ends() -> Iterator[Ends]:
    pair = Ends()
    yield pair
    for end in pair.sockets:
        end.close()


@pytest.fixture
def pipes() -> Iterator[tuple[int, int, int, int]]:
    descriptors = (*os.pipe(), *os.pipe())
    yield descriptors
    for descriptor in descriptors:
        try:
            os.close(descriptor)
        except OSError:
            pass


Pipes = tuple[int, int, int, int]


def test_bytes_and_their_end_are_carried(ends: Ends, pipes: Pipes) -> None:
    source, feed, drain, sink = pipes
    ended: list[str] = []
    ends.near.source(1, 0, source, lambda: ended.append("source"))
    ends.far.sink(1, 0, sink, lambda: ended.append("sink"))
    os.write(feed, b"hello")
    os.close(feed)
    ends.turn()
    assert (os.read(drain, 100), ended) == (b"hello", ["source", "sink"])


def test_a_reader_that_waits_stops_the_sender_at_the_window(ends: Ends, pipes: Pipes) -> None:
    source, feed, _drain, sink = pipes
    os.set_blocking(feed, False)
    os.set_blocking(sink, False)
    ends.near.source(1, 0, source, lambda: None)
    ends.far.sink(1, 0, sink, lambda: None)
    sent = 0
    for _ in range(100):
        try:
            sent += os.write(feed, bytes(1 << 16))
        except BlockingIOError:
            pass
        ends.turn(2)
    assert sent < WINDOW + 4 * (1 << 16)


def test_a_channel_goes_on_when_its_reader_does(ends: Ends, pipes: Pipes) -> None:
    source, feed, drain, sink = pipes
    os.set_blocking(feed, False)
    ends.near.source(1, 0, source, lambda: None)
    ends.far.sink(1, 0, sink, lambda: None)
    sent = got = 0
    while got < 2 * WINDOW:
        if sent < 2 * WINDOW:
            try:
                sent += os.write(feed, bytes(4096))
            except BlockingIOError:
                pass
        ends.turn(1)
        if got < sent and ends_have(drain):
            got += len(os.read(drain, 1 << 16))
    assert got == sent


def ends_have(descriptor: int) -> bool:
    import select

    return bool(select.select([descriptor], [], [], 0)[0])


def test_unread_data_is_dropped_and_credited(ends: Ends, pipes: Pipes) -> None:
    source, feed, drain, sink = pipes
    os.close(drain)
    ended: list[str] = []
    ends.near.source(1, 0, source, lambda: None)
    ends.far.sink(1, 0, sink, lambda: ended.append("broken"))
    for _ in range(2 * WINDOW // (1 << 15)):
        os.write(feed, bytes(1 << 15))
        ends.turn(4)
    assert ended == ["broken"]


def test_draining_ends_a_source_that_others_hold_open(ends: Ends, pipes: Pipes) -> None:
    source, feed, drain, sink = pipes
    ends.near.source(1, 0, source, lambda: None)
    ends.far.sink(1, 0, sink, lambda: None)
    os.write(feed, b"last words")
    ends.near.drain(1)
    ends.turn()
    assert not ends.near.has_sources(1)
    assert os.read(drain, 100) == b"last words"


def test_data_of_a_forgotten_stream_is_ignored(ends: Ends) -> None:
    ends.near.send(Frame(Kind.DATA, 9, 1, b"late"))
    ends.near.send(Frame(Kind.SIGNAL, 9, 0, b"\0\0\0\0"))
    ends.turn()
    assert [frame.kind for frame in ends.frames] == [Kind.SIGNAL]


def test_the_other_end_going_away_is_noticed(ends: Ends) -> None:
    ends.sockets[1].close()
    with pytest.raises(Disconnected):
        ends.near.step(0)


class FakeAgent:
    """The inner end, answering each frame as told, all in one piece."""

    def __init__(self, end: socket.socket, answers: list[Frame]) -> None:
        end.sendall(b"".join(frame.build() for frame in answers))


def test_a_quick_commands_output_may_come_with_the_news_of_its_start(pipes: Pipes) -> None:
    """Once lost, with the wait for its end: seen as a host that hung every fiftieth command."""
    source, feed, drain, sink = pipes
    os.close(feed)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        FakeAgent(
            theirs,
            [
                Frame(Kind.STARTED, 1),
                Frame(Kind.DATA, 1, 1, b"out"),
                Frame(Kind.END, 1, 1),
                Frame(Kind.END, 1, 2),
                Frame.of_number(Kind.EXIT, 1, 3),
            ],
        )
        request = Request(["x"], stdin=source, stdout=sink, stderr=sink, env={}, cwd="/")
        assert run_command(Endpoint(ours.fileno()), request) == 3
    assert os.read(drain, 100) == b"out"


def test_a_command_that_cannot_start_is_a_host_error(pipes: Pipes) -> None:
    source, _, _, sink = pipes
    ours, theirs = socket.socketpair()
    with ours, theirs:
        FakeAgent(theirs, [Frame(Kind.REFUSED, 1, 0, b"x: no such thing")])
        request = Request(["x"], stdin=source, stdout=sink, stderr=sink, env={}, cwd="/")
        with pytest.raises(HostError, match="no such thing"):
            run_command(Endpoint(ours.fileno()), request)


def test_the_host_gets_an_interrupt_now_and_then_while_nothing_is_to_say(
    pipes: Pipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyvmm.host.client.NUDGE_EVERY", 0.01)
    source, _, _, sink = pipes
    ours, theirs = socket.socketpair()
    got: list[Kind] = []

    def agent() -> None:
        decoder = Decoder()
        while got.count(Kind.NUDGE) < 3:
            got.extend(frame.kind for frame in decoder.feed(theirs.recv(65536)))
        theirs.sendall(Frame.of_number(Kind.EXIT, 1, 0).build())

    with ours, theirs:
        thread = threading.Thread(target=agent)
        thread.start()
        request = Request(["x"], stdin=source, stdout=sink, stderr=sink, env={}, cwd="/")
        assert run_command(Endpoint(ours.fileno()), request) == 0
        thread.join()
    assert got[0] is Kind.START


def test_an_end_passes_over_a_nudge(ends: Ends) -> None:
    ends.near.send(Frame(Kind.NUDGE))
    ends.near.send(Frame(Kind.POWEROFF))
    ends.turn()
    assert [frame.kind for frame in ends.frames] == [Kind.POWEROFF]
