"""The guest's session program, run on this machine: it is a static program that needs Linux only."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import pack, unpack

import pytest

from pyvmm.images.session_program import session_program
from pyvmm.session_protocol import INPUT_LIMIT, START_LIMIT, WORDS_LIMIT, Kind, start_frame


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("session") / "session"
    path.write_bytes(session_program())
    path.chmod(0o755)
    return path


class Session:
    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        connection.settimeout(10)

    def send(self, kind: int, payload: bytes = b"") -> None:
        self.connection.sendall(pack("<II", kind, len(payload)) + payload)

    def start(self, *words: str, window: tuple[int, int] | None = None) -> None:
        self.connection.sendall(start_frame([word.encode() for word in words], window=window))

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.connection.recv(size - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def frame(self) -> tuple[Kind, bytes]:
        kind, length = unpack("<II", self._exactly(8))
        return Kind(kind), self._exactly(length)

    def rest(self) -> tuple[bytes, bytes, int]:
        """Output, errors and status."""
        streams = {Kind.OUTPUT: b"", Kind.ERRORS: b""}
        while True:
            kind, payload = self.frame()
            if kind is Kind.EXIT:
                return streams[Kind.OUTPUT], streams[Kind.ERRORS], os.waitstatus_to_exitcode(unpack("<I", payload)[0])
            if kind is not Kind.TAKEN:
                streams[kind] += payload


@contextmanager
def running(program: Path) -> Iterator[Session]:
    ours, theirs = socket.socketpair()
    with ours, subprocess.Popen([str(program), "serve"], stdin=theirs.fileno()) as process:
        theirs.close()
        yield Session(ours)
        ours.close()
        process.wait(10)


def test_output_errors_and_status_are_apart(program: Path) -> None:
    with running(program) as session:
        session.start("/bin/sh", "-c", "echo out; echo err >&2; exit 7")
        assert session.rest() == (b"out\n", b"err\n", 7)


def test_words_reach_the_program_as_they_are(program: Path) -> None:
    with running(program) as session:
        session.start("/bin/sh", "-c", 'for w in "$@"; do printf "<%s>" "$w"; done', "sh", "a b", "", "$x", "é")
        assert session.rest()[0] == "<a b><><$x><é>".encode()


def test_input_is_taken_frame_by_frame(program: Path) -> None:
    with running(program) as session:
        session.start("/bin/cat")
        data = os.urandom(INPUT_LIMIT)
        got = b""
        for part in (data, data[:5]):
            session.send(Kind.INPUT, part)
            while (frame := session.frame())[0] is not Kind.TAKEN:
                got += frame[1]
        session.send(Kind.INPUT)
        out, _, status = session.rest()
        assert (got + out, status) == (data + data[:5], 0)


def test_input_that_is_not_read_stops_neither_signals_nor_output(program: Path) -> None:
    with running(program) as session:
        session.start("/bin/sh", "-c", "trap 'echo got it; exit 3' USR1; echo ready; while :; do sleep 0.05; done")
        assert session.frame() == (Kind.OUTPUT, b"ready\n")
        session.send(Kind.INPUT, bytes(INPUT_LIMIT))
        session.frame()
        session.send(Kind.INPUT, bytes(INPUT_LIMIT))
        session.frame()
        session.send(Kind.INPUT, bytes(INPUT_LIMIT))  # the pipe is full
        session.send(Kind.SIGNAL, pack("<I", signal.SIGUSR1))
        out, _, status = session.rest()  # the shell may tell that the signal killed its `sleep`, too
        assert (out, status) == (b"got it\n", 3)


def test_input_without_a_reader_is_taken_and_dropped(program: Path) -> None:
    with running(program) as session:
        session.start("/bin/sh", "-c", "exec <&-; echo closed; sleep 0.3")
        assert session.frame() == (Kind.OUTPUT, b"closed\n")
        for _ in range(3):
            session.send(Kind.INPUT, b"x" * 1000)
            assert session.frame()[0] is Kind.TAKEN
        assert session.rest()[2] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_signals_reach_the_whole_command(program: Path, number: signal.Signals) -> None:
    with running(program) as session:
        session.start("/bin/sh", "-c", "echo ready; sleep 60 | sleep 60")
        session.frame()
        session.send(Kind.SIGNAL, pack("<I", number))
        assert session.rest()[2] in (-number, 128 + number)


def test_broken_pipes_kill_commands_as_in_a_shell(program: Path) -> None:
    with running(program) as session:
        session.start("/bin/sh", "-c", "kill -PIPE $$; echo survived")
        assert session.rest() == (b"", b"", -signal.SIGPIPE)


def test_terminal_has_its_size_and_follows_it(program: Path) -> None:
    with running(program) as session:
        script = "stty size; trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.05; done"
        session.start("/bin/sh", "-c", script, window=(24, 80))
        out = b""
        while b"ready" not in out:
            out += session.frame()[1]
        session.send(Kind.WINDOW, pack("<HHHH", 50, 132, 0, 0))
        out += session.rest()[0]
        assert out.replace(b"\r", b"") == b"24 80\nready\n50 132\n"


def test_terminal_echoes_and_ends_by_its_keys(program: Path) -> None:
    with running(program) as session:
        session.start("/bin/sh", "-c", "cat; echo over; tty >/dev/null && echo terminal", window=(24, 80))
        session.send(Kind.INPUT, b"line\n\x04")
        assert session.rest() == (b"line\r\nline\r\nover\r\nterminal\r\n", b"", 0)


def test_all_output_comes_before_the_status(program: Path) -> None:
    with running(program) as session:
        session.start("/bin/sh", "-c", "head -c 1000000 /dev/zero; head -c 50000 /dev/zero >&2")
        out, err, status = session.rest()
        assert (len(out), len(err), status) == (1_000_000, 50_000, 0)


def test_children_that_go_on_do_not_keep_the_session(program: Path) -> None:
    with running(program) as session:
        session.start("/bin/sh", "-c", "sleep 5 & echo $!")
        began = time.monotonic()
        out, _, status = session.rest()
        assert status == 0 and time.monotonic() - began < 4
        os.kill(int(out), signal.SIGKILL)


def test_children_that_flood_do_not_keep_the_session(program: Path) -> None:
    with running(program) as session:
        session.start("/bin/sh", "-c", "yes & echo $! >&2")
        _, err, status = session.rest()
        os.kill(int(err), signal.SIGKILL)
        assert status == 0


def test_end_of_the_connection_hangs_the_command_up(program: Path) -> None:
    with running(program) as session:
        session.start("/bin/sh", "-c", "echo $$; exec sleep 60")
        pid = int(session.frame()[1])
        descriptor = os.pidfd_open(pid)
        session.connection.close()
        assert select.select([descriptor], [], [], 10)[0]
        os.close(descriptor)


def test_program_that_is_not_there_is_status_127(program: Path) -> None:
    with running(program) as session:
        session.start("/no/such/program")
        assert session.rest()[2] == 127


@pytest.mark.parametrize(
    "data",
    [
        pack("<II", Kind.INPUT, 0),
        pack("<II", Kind.START, START_LIMIT + 1),
        pack("<II", Kind.START, 0xFFFFFFFF),
        pack("<II", Kind.START, 4) + bytes(4),
        pack("<II", Kind.START, 16) + bytes(16),
        pack("<II", Kind.START, 18) + bytes(12) + pack("<I", 3) + b"a\0",
        pack("<II", Kind.START, 18) + bytes(12) + pack("<I", 0xFFFFFFFF) + b"a\0",
        pack("<II", Kind.START, 18) + bytes(12) + pack("<I", WORDS_LIMIT + 1) + b"a\0",
        b"short",
    ],
)
def test_bad_start_ends_the_session(program: Path, data: bytes) -> None:
    with running(program) as session:
        session.connection.sendall(data)
        session.connection.shutdown(socket.SHUT_WR)
        with pytest.raises((EOFError, ConnectionResetError)):
            session.frame()


@pytest.mark.parametrize(
    "data",
    [
        pack("<II", 77, 0),
        pack("<II", Kind.INPUT, INPUT_LIMIT + 1),
        pack("<II", Kind.SIGNAL, 9) + bytes(9),
        2 * (pack("<II", Kind.INPUT, INPUT_LIMIT) + bytes(INPUT_LIMIT)) * 3,
    ],
)
def test_bad_frame_hangs_the_command_up(program: Path, data: bytes) -> None:
    with running(program) as session:
        session.start("/bin/sh", "-c", "echo ready; exec sleep 60")
        session.frame()
        session.connection.sendall(data)
        with pytest.raises((EOFError, ConnectionResetError)):
            while True:
                assert session.frame()[0] is Kind.TAKEN


def test_wrong_words_are_usage_errors(program: Path) -> None:
    for words in ([], ["x"], ["listen"], ["connect"]):
        assert subprocess.run([str(program), *words], check=False).returncode == 2
