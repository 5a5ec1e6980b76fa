"""The process that connects to the host's programs for a confined machine."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyvmm.host.dial_forward import DialForward
from pyvmm.host.endpoint import Endpoint
from pyvmm.host.protocol import Frame, Kind
from pyvmm.loop import Loop
from pyvmm.sandbox.dialler import Dialler, connect_to


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


def program(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(path))
    made.listen(4)
    made.settimeout(10)
    return made


def until(loop: Loop, done: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not done():
        assert time.monotonic() < end
        loop.step(0.1)


def test_programs_are_connected_and_ports_without_one_are_refused(tmp_path: Path, loop: Loop) -> None:
    found: list[socket.socket | None] = []
    dialler = Dialler(tmp_path / "v", loop)
    with program(tmp_path / "v_7") as listening:
        dialler.dial(8, found.append)
        dialler.dial(7, found.append)
        until(loop, lambda: len(found) == 2)
        refused, connection = found
        assert refused is None and connection is not None
        with connection, listening.accept()[0] as theirs:
            theirs.sendall(b"hello")
            assert connection.recv(9) == b"hello"
    dialler.close()


def test_a_dialler_that_was_killed_refuses_all(tmp_path: Path, loop: Loop) -> None:
    found: list[socket.socket | None] = []
    dialler = Dialler(tmp_path / "v", loop)
    os.kill(dialler._child, 9)
    time.sleep(0.1)
    dialler.dial(8, found.append)
    dialler.dial(8, found.append)
    until(loop, lambda: len(found) == 2)
    dialler.close()


@pytest.mark.parametrize("name", ["x" * 200, "missing/v"])
def test_paths_that_cannot_be_are_no_program(tmp_path: Path, name: str) -> None:
    assert connect_to(tmp_path / name, 4_294_967_295) is None


class FakeInner:
    """The inner side of an emulated host: connects streams to the dialler's socket, as its agent does."""

    def __init__(self, port: int) -> None:
        self.endpoint = Endpoint(port)
        self.sockets: dict[int, socket.socket] = {}
        self.stop = False

    def serve(self) -> None:
        while not self.stop:
            for frame in self.endpoint.step(0.05):
                if frame.kind is Kind.CONNECT:
                    made = socket.socket(socket.AF_UNIX)
                    made.connect(os.fsdecode(frame.payload))
                    made.setblocking(False)
                    self.sockets[frame.stream] = made
                    self.endpoint.send(Frame(Kind.STARTED, frame.stream))
                    self.endpoint.source(frame.stream, 0, made.fileno(), lambda: None)
                    self.endpoint.sink(frame.stream, 0, made.fileno(), lambda: None)


def test_programs_outside_an_emulated_host_are_reached(
    tmp_path: Path, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyvmm.host.dial_forward.dialler_socket", lambda path: str(tmp_path / "inner"))
    dialler = Dialler(tmp_path / "inside" / "v", loop, outer=tmp_path / "inner")
    ours, theirs = socket.socketpair()
    inner = FakeInner(theirs.fileno())
    inner_thread = threading.Thread(target=inner.serve)
    inner_thread.start()
    endpoint = Endpoint(ours.fileno())
    streams: dict[int, socket.socket] = {}

    def add(connection: socket.socket) -> int:
        stream = len(streams) + 1
        streams[stream] = connection
        endpoint.sink(stream, 0, connection.fileno(), lambda: None)
        return stream

    def replace(stream: int, connection: socket.socket) -> None:
        streams[stream].close()
        streams[stream] = connection
        endpoint.redirect(stream, 0, connection.fileno())

    def drop(stream: int) -> None:
        endpoint.forget(stream)

    stop = threading.Event()
    forward = DialForward(endpoint, tmp_path / "v", add, replace, drop)

    def outer() -> None:
        forward.offer()
        while not stop.is_set():
            for frame in endpoint.step(0.05):
                if frame.kind is Kind.STARTED:
                    endpoint.source(frame.stream, 0, streams[frame.stream].fileno(), lambda: None)

    outer_thread = threading.Thread(target=outer)
    outer_thread.start()
    found: list[socket.socket | None] = []
    with program(tmp_path / "v_7") as listening:
        for port in (8, 7, 7):
            dialler.dial(port, found.append)
            until(loop, lambda: len(found) > 0)
            connection = found.pop()
            if port == 8:
                assert connection is None
                continue
            assert connection is not None
            with connection, listening.accept()[0] as program_end:
                connection.settimeout(10)
                program_end.settimeout(10)
                program_end.sendall(b"hello")
                assert connection.recv(9) == b"hello"
                connection.sendall(b"world")
                assert program_end.recv(9) == b"world"
    stop.set()
    inner.stop = True
    outer_thread.join(10)
    inner_thread.join(10)
    forward.close()
    dialler.close()
    assert not (tmp_path / "inner").exists()
    ours.close()
    theirs.close()
