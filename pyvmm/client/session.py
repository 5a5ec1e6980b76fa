"""Sessions with a guest: a command with its own input, output, errors and terminal, over a vsock connection.

`open_session` turns a monitor's connection into a session's. `attend` connects it to this process's descriptors,
terminal and signals; `collect` gathers its output.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from struct import pack
from types import FrameType
from typing import Final

from pyvmm.client.qmp import Client, TimedOut
from pyvmm.errors import GuestProtocolError, HostError
from pyvmm.foreground import FOREGROUND_POLL, Terminal, acquired, all_raw, window_of
from pyvmm.session_protocol import INPUT_LIMIT, FrameReader, Kind, frame, start_frame, window_frame

START_SECONDS = 60.0
"""Seconds for the guest to boot, load its modules and accept a session."""

SLOW_SECONDS = 2.0
"""Seconds after which the user is told what is waited for."""

_CHUNK: Final = 64 << 10
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)

TIMED_OUT = 124
"""Status of a command that exceeded its time limit, as timeout(1)'s."""
KILL_AFTER = 2.0
"""Seconds between SIGTERM and SIGKILL."""


class SessionLost(HostError):
    """The session ended before its command did."""

    def __init__(self) -> None:
        super().__init__("the guest ended the session before the command ended: it restarted, or its memory ran out")


AS_ANY_OTHER = "{ echo 0 >/proc/self/oom_score_adj; } 2>/dev/null"
"""Shell command: be chosen by the OOM killer as any other process, unlike the program for sessions."""


def shell_words(command: str, *, folder: str = "", terminal: bool = False) -> list[bytes]:
    """Return the words that run a shell command in the guest, in `folder`."""
    setup = f"{AS_ANY_OTHER}; "
    if folder:
        setup += f"cd {shlex.quote(folder)} || exit 126; "
    if terminal:
        setup += f"export TERM={shlex.quote(os.environ.get('TERM', 'linux'))}; "
    return [os.fsencode(word) for word in ("/bin/sh", "-c", setup + command)]


def login_words() -> list[bytes]:
    """Return the words of a login shell: bash where there is one, as on a whole system's disk."""
    script = AS_ANY_OTHER + '; export TERM="$1"; cd; [ ! -x /bin/bash ] || exec /bin/bash -l; exec /bin/sh -l'
    return [os.fsencode(word) for word in ("/bin/sh", "-c", script, "sh", os.environ.get("TERM", "linux"))]


class Session:
    """One command in a guest. `status` is its exit status once it has ended, 128 + n if signal n killed it."""

    def __init__(self, connection: socket.socket, first: bytes = b"") -> None:
        self.status: int | None = None
        self.connection = connection
        self.ready_for_input = True
        """Whether `write` may be called: the last input was taken."""
        self._reader = FrameReader()
        self._first = first
        connection.setblocking(True)

    def start(self, words: Sequence[bytes], *, window: tuple[int, int] | None = None) -> None:
        """Start the command. Raises ConfigError if it is too long."""
        self._send(start_frame(words, window=window))

    def write(self, data: bytes) -> None:
        """Send input, INPUT_LIMIT bytes at most; none ends it. Only while `ready_for_input`."""
        assert self.ready_for_input
        self.ready_for_input = not data
        self._send(frame(Kind.INPUT, data))

    def kill(self, number: int) -> None:
        """Send a signal to the command and what it has started."""
        self._send(frame(Kind.SIGNAL, pack("<I", number)))

    def resize(self, rows: int, columns: int) -> None:
        """Tell the new size of the terminal."""
        self._send(window_frame(rows, columns))

    def receive(self) -> Iterator[tuple[Kind, bytes]]:
        """Wait for data and return the OUTPUT and ERRORS in it. Raises SessionLost, HostError."""
        data, self._first = self._first, b""
        if not data:
            try:
                data = self.connection.recv(_CHUNK)
            except TimeoutError:
                raise
            except OSError as error:
                raise SessionLost from error
        if not data:
            raise SessionLost
        try:
            for kind, payload in self._reader.feed(data):
                match kind:
                    case Kind.OUTPUT | Kind.ERRORS:
                        yield kind, payload
                    case Kind.TAKEN:
                        self.ready_for_input = True
                    case Kind.EXIT:
                        self.status = _shell_status(int.from_bytes(payload, "little"))
                        return
                    case _:
                        number = int.from_bytes(payload, "little")
                        raise HostError(f"the guest cannot start the command: {os.strerror(number & 0xFFF)}")
        except GuestProtocolError as error:
            raise HostError(f"the guest breaks the protocol: {error}") from error

    def close(self) -> None:
        """End the session; a command that still runs gets SIGHUP."""
        self.connection.close()

    def _send(self, data: bytes) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # reading finds the end
            self.connection.sendall(data)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _shell_status(status: int) -> int:
    try:
        code = os.waitstatus_to_exitcode(status)
    except ValueError:  # no status that a process ends with
        return 255
    return code if code >= 0 else 128 - code


def open_session(client: Client, *, start: bool = True, say: Callable[[str], object] = lambda line: None) -> Session:
    """Return a session; takes over the client's connection. Raises Refused, with the reason, if there can be none.

    `start` False: nor if the guest's program for sessions was not started yet. `say` gets a line for the user if that
    takes long. Raises HostError for a guest that does not run.
    """
    state = client.execute("query-status")["status"] if start else ""
    if state in ("paused", "prelaunch", "debug", "io-error"):
        raise HostError(f"the guest does not run: its state is {state!r}; `cont` in its monitor resumes it")
    client.timeout = START_SECONDS
    slow = threading.Timer(SLOW_SECONDS, say, ["waiting for the guest to start a session"])
    slow.daemon = True
    slow.start()
    try:
        client.execute("x-session", {} if start else {"start": False})
    finally:
        slow.cancel()
    connection, first = client.detach()
    return Session(connection, first)


def open_session_at(socket_path: str | Path, *, start: bool = True) -> Session:
    """Return a session with the machine whose monitor is there."""
    client = Client(socket_path)
    try:
        return open_session(client, start=start)
    except BaseException:
        client.close()
        raise


def collect(
    session: Session, words: Sequence[bytes], *, seconds: float, limit: int, grace: float = 5.0
) -> tuple[int, bytes, bytes, bool]:
    """Run a command without input. Return status, output, errors, and whether more than `limit` bytes of one came.

    After `seconds` the command is killed, and the status is TIMED_OUT. Raises TimedOut if that has no effect.
    """
    streams = {Kind.OUTPUT: bytearray(), Kind.ERRORS: bytearray()}
    truncated = timed_out = False
    deadline = time.monotonic() + seconds
    hopeless = deadline + grace
    with session:
        session.start(words)
        session.write(b"")
        while session.status is None:
            now = time.monotonic()
            if now >= hopeless:
                raise TimedOut(f"the guest did not end the command within {seconds:g} s")
            if now >= deadline:
                session.kill(signal.SIGKILL if timed_out else signal.SIGTERM)
                timed_out = True
                deadline = now + KILL_AFTER
            session.connection.settimeout(max(0.01, min(deadline, hopeless) - now))
            try:
                for kind, data in session.receive():
                    kept = streams[kind]
                    truncated |= len(kept) + len(data) > limit
                    kept += data[: limit - len(kept)]
            except TimeoutError:
                continue
    status = TIMED_OUT if timed_out else session.status
    return status, bytes(streams[Kind.OUTPUT]), bytes(streams[Kind.ERRORS]), truncated


def attend(
    session: Session,
    words: Sequence[bytes],
    *,
    stdin: int | None = 0,
    stdout: int = 1,
    stderr: int = 2,
    tty: bool = False,
) -> int:
    """Run a command with this process's descriptors and signals, on the main thread, and return its status.

    `tty`: it gets a terminal, whose keys come from `stdin`; Enter ~ . ends the session. Raises SessionLost, and
    OSError for output that cannot be written.
    """
    with session, contextlib.ExitStack() as stack:
        caught = stack.enter_context(_signals(tty))
        window = (window_of(stdin) if stdin is not None else None) or window_of(stdout) or (24, 80)
        session.start(words, window=window if tty else None)
        keyboard: Terminal | None = None
        if tty and stdin is not None and os.isatty(stdin):
            keyboard = stack.enter_context(acquired(Terminal(stdin, all_raw)))
        if stdin is None:
            session.write(b"")
        escape = _Escape()
        poll = select.poll()
        poll.register(session.connection, select.POLLIN)
        poll.register(caught.descriptor, select.POLLIN)
        listening = False
        while session.status is None:
            wanted = stdin is not None and session.ready_for_input and (keyboard is None or keyboard.acquire())
            if stdin is not None and wanted != listening:
                poll.register(stdin, select.POLLIN) if wanted else poll.unregister(stdin)
                listening = wanted
            waits = keyboard is not None and not keyboard.held
            ready = {fd for fd, _ in poll.poll(FOREGROUND_POLL * 1000 if waits else None)}
            for number in caught.take():
                if number == signal.SIGWINCH:
                    size = (window_of(stdin) if stdin is not None else None) or window_of(stdout)
                    if size is not None:
                        session.resize(*size)
                else:
                    session.kill(number)
            if session.connection.fileno() in ready:
                for kind, data in session.receive():
                    _write(stdout if kind is Kind.OUTPUT else stderr, data)
            if listening and stdin in ready and session.status is None and session.ready_for_input:
                assert stdin is not None
                data = _read(stdin)
                if keyboard is not None:
                    data, over = escape.feed(data)
                    if over:
                        _write(stderr, b"\r\n")
                        return 255
                    if data:
                        session.write(data)
                else:
                    session.write(data)
                    if not data:
                        poll.unregister(stdin)
                        stdin, listening = None, False
        return session.status


class _Caught:
    """Signals that were caught; a second terminating one ends the wait."""

    def __init__(self) -> None:
        self.descriptor, self.writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._numbers: list[int] = []
        self._ending = 0

    def catch(self, number: int, frame: FrameType | None) -> None:
        self._numbers.append(number)
        if number in (signal.SIGINT, signal.SIGTERM):
            self._ending += 1
            if self._ending > 1:
                raise KeyboardInterrupt

    def take(self) -> list[int]:
        with contextlib.suppress(BlockingIOError):
            os.read(self.descriptor, 4096)
        taken, self._numbers = self._numbers, []
        return taken


@contextlib.contextmanager
def _signals(tty: bool) -> Iterator[_Caught]:
    caught = _Caught()
    wakeup = signal.set_wakeup_fd(caught.writer, warn_on_full_buffer=False)
    before = {}
    for number in (signal.SIGWINCH,) if tty else _FORWARDED:
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, caught.catch)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        os.close(caught.descriptor)
        os.close(caught.writer)


class _Escape:
    """Finds the keys that end a session, Enter ~ . as in ssh; ~ ~ is one ~."""

    def __init__(self) -> None:
        self._at_start = True  # of a line
        self._tilde = False  # the key before was ~ at the start of a line; it is held back

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """Return the keys for the guest, and whether the session is to end."""
        keys = bytearray()
        for key in data:
            if self._tilde:
                self._tilde = False
                if key == ord("."):
                    return bytes(keys), True
                if key != ord("~"):
                    keys.append(ord("~"))
            elif key == ord("~") and self._at_start:
                self._tilde, self._at_start = True, False
                continue
            keys.append(key)
            self._at_start = key in b"\r\n"
        return bytes(keys), False


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, INPUT_LIMIT)
    except OSError:  # the terminal was hung up
        return b""


def _write(descriptor: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:  # another program has set its descriptor so
            select.select([], [descriptor], [])
