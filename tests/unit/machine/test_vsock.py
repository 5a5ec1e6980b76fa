"""The host's side of a machine's sockets: the CONNECT line of programs, and the start of sessions."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvmm.errors import ConfigError, HostError, PyvmmError
from pyvmm.loop import Loop
from pyvmm.machine import sessions as sessions_module
from pyvmm.machine import vsock as module
from pyvmm.machine.agent import GuestAgent
from pyvmm.machine.sessions import Sessions
from pyvmm.machine.vsock import GREETINGS_LIMIT, LINE_LIMIT, Vsock
from pyvmm.session_protocol import PORT
from tests.support.fake_guest import FakeGuest


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def vsock(loop: Loop) -> Vsock:
    return Vsock(FakeGuest().connect().bus, loop)


def program(vsock: Vsock) -> socket.socket:
    ours, theirs = socket.socketpair()
    vsock.accept(theirs, Path("v.sock"))
    ours.settimeout(5)
    return ours


def ended(loop: Loop, connection: socket.socket) -> bool:
    connection.setblocking(False)
    for _ in range(100):
        loop.step(0.01)
        try:
            return connection.recv(1) == b""
        except BlockingIOError:
            continue
        except ConnectionResetError:
            return True
    return False


@pytest.mark.parametrize(
    "line",
    [b"CONNECT\n", b"CONNECT x\n", b"CONNECT -1\n", b"CONNECT 4294967296\n", b"GET / HTTP/1.0\r\n", b"\n", b"x" * 70],
)
def test_other_lines_end_the_connection(vsock: Vsock, loop: Loop, line: bytes) -> None:
    with program(vsock) as connection:
        connection.sendall(line)
        assert ended(loop, connection)


@pytest.mark.parametrize("line", [b"CONNECT 5\n", b"connect\t5 \r\n", b"CONNECT 4294967295\n"])
def test_a_line_may_come_in_pieces_and_leaves_what_follows(
    vsock: Vsock, loop: Loop, line: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, bytes]] = []

    def greeted(greeting: Any, port: int | None) -> None:
        assert port is not None
        asked.append((port, greeting.connection.recv(99)))

    monkeypatch.setattr(vsock, "greeted", greeted)
    with program(vsock) as connection:
        for at in range(len(line) - 1):
            connection.sendall(line[at : at + 1])
            loop.step(0.01)
        connection.sendall(line[-1:] + b"data")
        loop.step(0.1)
    assert asked == [(int(line.split()[1]), b"data")]


def test_programs_without_a_line_are_limited_in_number_and_time(
    vsock: Vsock, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LINE_SECONDS", 0.2)
    held = [program(vsock) for _ in range(GREETINGS_LIMIT)]
    with program(vsock) as one_more:
        assert one_more.recv(1) == b""
    assert ended(loop, held[0]), "the time is over"
    for each in held:
        each.close()
    vsock.close()
    assert LINE_LIMIT == 64


def test_port_that_nobody_listens_on_ends_the_connection(vsock: Vsock, loop: Loop) -> None:
    failed: list[str] = []
    vsock.connect(-1, lambda: None, failed.append)
    assert failed == ["-1 is no port"]
    answers: list[socket.socket | None] = []
    vsock.programs(7, answers.append)
    assert answers == [None]


class Agent:
    """The agent, as far as sessions know it."""

    def __init__(self) -> None:
        self.ready, self.starts, self.sessions_only = True, 1, False


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []

    def execute(agent: Any, timers: Any, command: str, seconds: int, done: Any) -> None:
        assert str(PORT) in command
        done(found.pop(0))

    monkeypatch.setattr(sessions_module, "execute", execute)
    return found


def test_program_for_sessions_is_started_once_a_life(results: list[Any]) -> None:
    agent = Agent()
    made, told = Sessions(agent, None), []  # type: ignore[arg-type]
    made.start(told.append, only_if_started=True)
    assert isinstance(told.pop(), ConfigError)
    results += [{"status": 0, "stdout": b""}] * 2
    made.start(told.append)
    made.start(told.append)
    assert told == [PORT, PORT] and len(results) == 1
    agent.starts = 2  # the guest was reset
    made.start(told.append, only_if_started=True)
    assert told[2:] == [PORT] and not results


@pytest.mark.parametrize(
    ("result", "kind", "words"),
    [
        ({"status": 1, "stdout": b"the kernel has no\n  sockets\x1b[2J"}, ConfigError, "the kernel has no"),
        ({"status": 126, "stdout": b""}, ConfigError, "initramfs is not pyvmm's"),
        ({"status": 9, "stdout": b""}, ConfigError, "ended with 9"),
        (HostError("no agent answers"), HostError, "no agent"),
    ],
)
def test_reason_is_told_in_one_line(results: list[Any], result: Any, kind: type[PyvmmError], words: str) -> None:
    told: list[Any] = []
    results.append(result)
    Sessions(Agent(), None).start(told.append)  # type: ignore[arg-type]
    assert (
        isinstance(told[0], kind)
        and words in str(told[0])
        and "\n" not in str(told[0])
        and "\x1b" not in str(told[0])
    )


def test_guest_with_a_system_of_its_own_says_that_it_has_sessions_only() -> None:
    loop = Loop()
    agent = GuestAgent(lambda data: 0, loop)
    made, told = Sessions(agent, loop), []
    made.start(told.append)
    assert not told, "it boots"
    agent.received(b"sessions\r\n")
    made.start(told.append, only_if_started=True)
    assert told == [PORT, PORT]
    with pytest.raises(ConfigError, match="`pyvmm exec`"):
        agent.execute("true", lambda stream, data: None, lambda status: None)
    agent.reset()
    made.start(told.append)
    assert len(told) == 2
    loop.close()
