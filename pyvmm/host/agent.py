"""The emulated host's agent: process 1 once the root is mounted, which starts commands for the outer side.

It runs in the machine's own Python, from copies of the machine's own files (see preload.py). Descriptor 3 is the port
to the outer side; when it is closed, or at POWEROFF, the emulated host ends, so that no command outlives its client.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import signal
import socket
import struct
import sys
import termios
import time
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from pyvmm.host import rootfs
from pyvmm.host.endpoint import Disconnected, Endpoint
from pyvmm.host.protocol import STDERR, STDIN, STDOUT, TERMINAL, Frame, Kind, ProtocolError
from pyvmm.host.zygote import Zygote

PORT = 3
GRACE = 5.0  # seconds between SIGHUP and SIGKILL for a command whose client has disconnected
CONNECT_TIMEOUT = 15.0  # seconds that a forwarded connection waits for its command to open the socket


@dataclass(slots=True)
class Command:
    """A running command with its process, terminal and pipes."""

    stream: int
    pid: int
    terminal: int  # the agent's side of its terminal, or -1
    open: set[int]  # the agent's ends of its pipes
    status: int | None = None
    kill_at: float | None = None

    def close(self, descriptor: int) -> None:
        """Close the agent's end of a pipe, once."""
        if descriptor in self.open:
            self.open.remove(descriptor)
            os.close(descriptor)


@dataclass(slots=True)
class Connecting:
    """A forwarded connection whose inner socket does not exist yet."""

    stream: int
    path: str
    until: float


class Agent:
    """Starts and ends commands as requested by frames on the port."""

    def __init__(self, port: int, zygote: Zygote) -> None:
        self.zygote = zygote
        self.endpoint = Endpoint(port)
        self.commands: dict[int, Command] = {}
        self.sockets: dict[int, socket.socket] = {}
        self.connecting: list[Connecting] = []
        wake, self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)

        def awake() -> None:
            os.read(wake, 4096)

        self.endpoint.watch(wake, awake)

    def serve(self) -> None:
        """Serve until POWEROFF or the end of the port."""
        self.endpoint.send(Frame(Kind.HELLO, payload=json.dumps({"pid": os.getpid()}).encode()))
        while True:
            for frame in self.endpoint.step(self._timeout()):
                if frame.kind is Kind.POWEROFF:
                    return
                self._handle(frame)
            self._reap()
            self._retry()
            self._kill_late()

    def _timeout(self) -> float | None:
        if self.connecting:
            return 0.05
        if any(command.status is None and command.kill_at for command in self.commands.values()):
            return 0.5
        return None

    def _handle(self, frame: Frame) -> None:
        command = self.commands.get(frame.stream)
        match frame.kind:
            case Kind.START:
                try:
                    self._start(frame.stream, json.loads(frame.payload))
                except OSError as error:
                    text = f"{error.filename}: {error.strerror}" if error.filename else str(error)
                    self.endpoint.forget(frame.stream)
                    self.endpoint.send(Frame(Kind.REFUSED, frame.stream, payload=text.encode()))
            case Kind.CONNECT:
                until = time.monotonic() + CONNECT_TIMEOUT
                self.connecting.append(Connecting(frame.stream, os.fsdecode(frame.payload), until))
            case Kind.SIGNAL if command:
                self._kill(command, frame.number)
            case Kind.RESIZE if command and command.terminal >= 0 and len(frame.payload) == 4:
                set_window_size(command.terminal, *struct.unpack("<HH", frame.payload))
            case Kind.BROKEN if command:
                self._break(command, frame.channel)
            case Kind.CLOSE if command:
                self._kill(command, signal.SIGHUP)
                command.kill_at = time.monotonic() + GRACE
            case Kind.CLOSE:
                self._close_socket(frame.stream)
            case Kind.SIGNAL | Kind.RESIZE | Kind.BROKEN:
                pass  # it has ended meanwhile
            case _:
                raise ProtocolError(f"agent: unexpected {frame.kind.name}")

    # Commands

    def _start(self, stream: int, request: dict[str, Any]) -> None:
        tty: list[int] = request["tty"]  # which of 0, 1, 2 are the terminal
        ours: dict[int, int] = {}
        theirs: dict[int, int] = {}
        terminal = -1
        if tty:
            terminal, slave = os.openpty()
            set_window_size(terminal, *request["window"])
            theirs.update(dict.fromkeys(tty, slave))
        for descriptor in {STDIN, STDOUT, STDERR} - set(tty):
            reader, writer = os.pipe2(os.O_CLOEXEC)
            theirs[descriptor], ours[descriptor] = (reader, writer) if descriptor == STDIN else (writer, reader)
        failure_reader, failure_writer = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid == 0:
            os.close(failure_reader)
            self.zygote.run_in_child(request, theirs, failure_writer)
        os.close(failure_writer)
        for descriptor in set(theirs.values()):
            os.close(descriptor)
        failure = b""
        while part := os.read(failure_reader, 4096):
            failure += part
        os.close(failure_reader)
        if failure:
            os.waitpid(pid, 0)
            for descriptor in [*ours.values(), *([terminal] if tty else [])]:
                os.close(descriptor)
            number, _, text = failure.decode(errors="replace").partition(" ")
            raise OSError(int(number), os.strerror(int(number)), text)
        command = self.commands[stream] = Command(stream, pid, terminal, set(ours.values()))
        self.endpoint.send(Frame(Kind.STARTED, stream))
        for descriptor in [*ours.values(), *([terminal] if tty else [])]:
            os.set_blocking(descriptor, False)
        if terminal >= 0:
            # On a terminal, end of input is a character from the outer side; the terminal is never closed for it.
            self.endpoint.source(stream, TERMINAL, terminal, lambda: None)
            if STDIN in tty:
                self.endpoint.sink(stream, STDIN, terminal, lambda: None)
        for descriptor, our in ours.items():
            if descriptor == STDIN:
                self.endpoint.sink(stream, STDIN, our, partial(command.close, our))
            else:
                self.endpoint.source(stream, descriptor, our, partial(command.close, our))

    def _kill(self, command: Command, number: int) -> None:
        if command.status is None:
            try:
                os.killpg(command.pid, number)
            except (ProcessLookupError, ValueError, OSError):
                pass

    def _break(self, command: Command, channel: int) -> None:
        """Break an output of the command: hang its terminal up, or close the pipe's reading end."""
        if channel == TERMINAL:
            self._kill(command, signal.SIGHUP)
        elif (descriptor := self.endpoint.drop_source(command.stream, channel)) is not None:
            command.close(descriptor)

    def _kill_late(self) -> None:
        for command in self.commands.values():
            if command.kill_at is not None and time.monotonic() >= command.kill_at:
                self._kill(command, signal.SIGKILL)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
            except ChildProcessError:
                break
            if pid == 0:
                break
            for command in self.commands.values():
                if command.pid == pid and os.WIFSTOPPED(status):
                    number = os.WSTOPSIG(status)
                    self.endpoint.send(Frame.of_number(Kind.STOPPED, command.stream, number))
                elif command.pid == pid:
                    command.status = os.waitstatus_to_exitcode(status)
                    self.endpoint.drain(command.stream)
                    self.endpoint.send(Frame.of_number(Kind.ENDED, command.stream, command.status))
        for command in [c for c in self.commands.values() if c.status is not None]:
            if not self.endpoint.has_sources(command.stream):
                self._finish(command)

    def _finish(self, command: Command) -> None:
        assert command.status is not None
        self.endpoint.forget(command.stream)
        for descriptor in list(command.open):
            command.close(descriptor)
        if command.terminal >= 0:
            os.close(command.terminal)
        del self.commands[command.stream]
        os.sync()  # its writes to shared files reach the machine before its end is reported
        self.endpoint.send(Frame.of_number(Kind.EXIT, command.stream, command.status))

    # Forwarded sockets

    def _retry(self) -> None:
        for waiting in list(self.connecting):
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.connect(waiting.path)
            except OSError as error:
                connection.close()
                early = error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.EAGAIN)
                if early and time.monotonic() < waiting.until:
                    continue
                text = f"{waiting.path}: {error.strerror or error}"
                self.endpoint.send(Frame(Kind.REFUSED, waiting.stream, payload=text.encode()))
            else:
                connection.setblocking(False)
                stream = waiting.stream
                self.sockets[stream] = connection
                self.endpoint.send(Frame(Kind.STARTED, stream))
                self.endpoint.source(stream, 0, connection.fileno(), lambda: None)
                self.endpoint.sink(stream, 0, connection.fileno(), _shutter(connection))
            self.connecting.remove(waiting)

    def _close_socket(self, stream: int) -> None:
        self.connecting = [waiting for waiting in self.connecting if waiting.stream != stream]
        self.endpoint.forget(stream)
        if connection := self.sockets.pop(stream, None):
            connection.close()


def _shutter(connection: socket.socket) -> Any:
    def shut() -> None:
        try:
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    return shut


def set_window_size(terminal: int, rows: int, columns: int) -> None:
    """Set a terminal's size (TIOCSWINSZ)."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def _power_off() -> NoReturn:
    os.sync()
    ctypes.CDLL(None).reboot(0x4321FEDC)  # LINUX_REBOOT_CMD_POWER_OFF
    os._exit(1)


def main() -> NoReturn:
    """Run process 1: import, wait for the `go` line (the host is saved in this state), mount, serve."""
    try:
        os.set_inheritable(PORT, False)
        zygote = Zygote.load()
        os.write(PORT, b"ready\n")
        line = b""
        while not line.endswith(b"\n"):
            part = os.read(PORT, 1)
            if not part:
                raise Disconnected
            line += part
        go, now, seed = line.split()
        if go != b"go":
            raise ProtocolError(f"unexpected {line!r}")
        rootfs.refresh_clock_and_random(float(now), bytes.fromhex(seed.decode()))
        rootfs.change_root()
        Agent(PORT, zygote).serve()
    except Disconnected:
        pass
    except BaseException as error:
        print(f"pyvmm-host: agent: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        _power_off()
