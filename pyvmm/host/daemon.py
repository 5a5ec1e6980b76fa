"""The host daemon: a process that owns a QEMU and serves commands over a Unix socket until it is idle.

Every client speaks the agent's own protocol to the daemon, which only renumbers the streams. Flow control is end to
end, so the daemon's queues are bounded by the windows of the channels. One thread, poll(2).

    client A  --START 1-->          --START 7-->
                           daemon                  agent
    client B  --START 1-->          --START 8-->

It ends when asked to, when QEMU ends, or after IDLE_SECONDS without a client.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import struct
import time
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from pyvmm.errors import HostError, PyvmmError
from pyvmm.files import Shape, parse_object
from pyvmm.host.emulated import EmulatedHost
from pyvmm.host.kit import Progress
from pyvmm.host.preload import agent_digest
from pyvmm.host.protocol import Decoder, Frame, Kind, ProtocolError
from pyvmm.paths import open_private, private_folder, runtime_folder
from pyvmm.unix_socket import ListeningSocket

IDLE_SECONDS = 30 * 60
START_LIMIT = 240.0  # seconds, a first boot included
LOOK_LIMIT = 1.0  # seconds that a process may hold the lock just to test it
_LAST = (Kind.EXIT, Kind.REFUSED)


def _folder() -> Path:
    """Return the daemon's folder: a subfolder, as NAME.json and NAME.sock in the runtime folder are a machine's."""
    return private_folder(runtime_folder() / "emulated-host", "remove it")


def _socket_path() -> Path:
    return _folder() / "host.sock"


RECORD: dict[str, Shape] = {"pid": int, "memory_mib": int, "idle": int, "agent": str}
"""Members of host.json."""


def _information() -> dict[str, Any] | None:
    """Return the running daemon's host.json. It runs if it holds the lock on the file: a pid may be reused."""
    try:
        descriptor = open_private(_folder() / "host.json", create=False)
    except OSError:
        return None
    try:
        if _try_lock(descriptor):
            return None
        record = parse_object(os.pread(descriptor, 1 << 12, 0).decode("utf-8", "replace"), RECORD)
        return {name: record[name] for name in RECORD}
    except ValueError:  # not written yet
        return None
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def connect(memory_mib: int = 0) -> socket.socket | None:
    """Connect to the daemon. Returns None if there is none, or it has less memory or another protocol version
    (another checkout may have started it).
    """
    record = _information()
    if record is None or record["memory_mib"] < memory_mib or record["agent"] != agent_digest():
        return None
    return _connect()


def _connect() -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.connect(str(_socket_path()))
    except OSError:
        connection.close()
        return None
    return connection


def start(memory_mib: int, idle_seconds: int, progress: Progress) -> str:
    """Start the daemon unless one runs, and wait until it serves."""
    if _information() is not None:
        return status()
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.close(reader)
        _daemon(writer, memory_mib, idle_seconds)
    os.close(writer)
    said = ""
    until = time.monotonic() + START_LIMIT
    with open(reader, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], max(0.0, until - time.monotonic()))[0]:
            part = pipe.read(4096)
            if not part:
                break
            said += part.decode(errors="replace")
            while "\n" in said:
                line, _, said = said.partition("\n")
                if line == "ready":
                    return status()
                if line.startswith("failed "):
                    raise HostError(line.removeprefix("failed "))
                progress(line)
    raise HostError("the emulated host did not start")


def stop() -> str:
    """Ask the daemon to end, and wait for it."""
    record = _information()
    connection = _connect()
    if record is None or connection is None:
        return "no emulated host is running"
    with connection:
        connection.sendall(Frame(Kind.POWEROFF).build())
        connection.settimeout(20)
        with contextlib.suppress(OSError):
            while connection.recv(4096):
                pass
    return "the emulated host has ended"


def status() -> str:
    """Return one line about the daemon."""
    record = _information()
    if record is None:
        return "no emulated host is running"
    pid, memory, idle = record["pid"], record["memory_mib"], record["idle"]
    return f"an emulated host is running: pid {pid}, {memory} MiB, ends when idle {idle} s"


def _daemon(report: int, memory_mib: int, idle_seconds: int) -> NoReturn:
    """Run the daemon in the forked child: detach from the terminal, start the host, serve."""
    status = 1
    try:
        os.setsid()
        nothing = os.open("/dev/null", os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nothing, descriptor)
        os.closerange(3, report)  # includes the caller's locks, which the daemon would hold for its whole life
        os.closerange(report + 1, os.sysconf("SC_OPEN_MAX"))
        os.chdir("/")

        def end(number: int, frame: FrameType | None) -> None:
            raise SystemExit(128 + number)

        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, end)
        _keep_host(report, memory_mib, idle_seconds)
        status = 0
    except PyvmmError as error:
        with contextlib.suppress(OSError):
            os.write(report, f"failed {error}\n".encode())
    except SystemExit:
        pass
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(report, f"failed {type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(status)


def _keep_host(report: int, memory_mib: int, idle_seconds: int) -> None:
    file = open_private(_folder() / "host.json")
    until = time.monotonic() + LOOK_LIMIT
    while not _try_lock(file):  # another process may hold it just to test it
        if time.monotonic() > until:
            raise HostError("another emulated host is just starting: try again")
        time.sleep(0.05)
    os.ftruncate(file, 0)  # contents left by a killed daemon
    with (
        EmulatedHost.start(memory_mib=memory_mib, progress=lambda line: _tell(report, line)) as host,
        ListeningSocket(_socket_path(), 32) as listener,
    ):
        record = {"pid": os.getpid(), "memory_mib": host.memory_mib, "idle": idle_seconds, "agent": agent_digest()}
        os.pwrite(file, json.dumps(record).encode(), 0)
        try:
            _tell(report, "ready")
            os.close(report)
            Router(host, listener.socket, idle_seconds).serve()
        finally:
            os.ftruncate(file, 0)


def _tell(report: int, line: str) -> None:
    with contextlib.suppress(OSError):
        os.write(report, line.encode() + b"\n")


class _Peer:
    """A connection to a client or to the agent: decodes incoming frames, queues outgoing bytes."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.decoder = Decoder()
        self.out = bytearray()
        self.streams: dict[int, int] = {}  # the client's numbers -> the agent's
        os.set_blocking(descriptor, False)

    def read(self) -> list[Frame]:
        """Read the frames that have arrived. Raises EOFError at the end."""
        try:
            data = os.read(self.descriptor, 1 << 16)
        except BlockingIOError:
            return []
        except OSError as error:
            raise EOFError from error
        if not data:
            raise EOFError
        return list(self.decoder.feed(data))

    def write(self) -> None:
        """Send queued bytes. Raises EOFError if the peer is gone."""
        try:
            del self.out[: os.write(self.descriptor, memoryview(self.out)[: 1 << 16])]
        except BlockingIOError:
            pass
        except OSError as error:
            raise EOFError from error


class Router:
    """Carries frames between clients and the agent."""

    def __init__(self, host: EmulatedHost, listener: socket.socket, idle_seconds: float) -> None:
        self._listener = listener
        self._idle_seconds = idle_seconds
        self._agent = _Peer(host.endpoint.port)
        self._clients: dict[int, tuple[socket.socket, _Peer]] = {}
        self._owners: dict[int, tuple[_Peer, int]] = {}  # the agent's numbers -> client, its number
        self._last = 0
        self._ending = False

    def serve(self) -> None:
        """Serve until SIGTERM, the agent's end, or the idle time limit."""
        while not self._ending:
            poll = select.poll()
            poll.register(self._listener, select.POLLIN)
            for peer in (self._agent, *(peer for _, peer in self._clients.values())):
                poll.register(peer.descriptor, select.POLLIN | (select.POLLOUT if peer.out else 0))
            ready = poll.poll(None if self._clients else int(self._idle_seconds * 1000))
            if not ready and not self._clients:
                return
            for descriptor, events in ready:
                if descriptor == self._listener.fileno():
                    self._accept()
                elif descriptor == self._agent.descriptor:
                    try:
                        self._serve_agent(events)
                    except EOFError:
                        return
                elif descriptor in self._clients:
                    try:
                        self._serve_client(self._clients[descriptor][1], events)
                    except (EOFError, ProtocolError):
                        self._lose(descriptor)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            *_, user, _ = struct.unpack(
                "iii", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iii"))
            )
            if user != os.getuid():
                connection.close()
                return
            self._clients[connection.fileno()] = connection, _Peer(connection.fileno())

    def _serve_client(self, client: _Peer, events: int) -> None:
        if events & select.POLLOUT:
            client.write()
        if not events & ~select.POLLOUT:
            return
        for frame in client.read():
            if frame.kind is Kind.POWEROFF:
                self._ending = True
                return
            if frame.kind is Kind.NUDGE:
                self._agent.out += frame.build()
                continue
            if frame.kind in (Kind.START, Kind.CONNECT):
                self._last += 1
                client.streams[frame.stream] = self._last
                self._owners[self._last] = client, frame.stream
            if (number := client.streams.get(frame.stream)) is not None:
                frame.stream = number
                self._agent.out += frame.build()
                if frame.kind is Kind.CLOSE:
                    self._forget(number)

    def _serve_agent(self, events: int) -> None:
        if events & select.POLLOUT:
            self._agent.write()
        if not events & ~select.POLLOUT:
            return
        for frame in self._agent.read():
            owner = self._owners.get(frame.stream)
            if owner is None:
                continue
            client, frame.stream = owner[0], owner[1]
            client.out += frame.build()
            if frame.kind in _LAST:
                self._forget(client.streams[frame.stream])

    def _forget(self, number: int) -> None:
        client, theirs = self._owners.pop(number)
        client.streams.pop(theirs, None)

    def _lose(self, descriptor: int) -> None:
        connection, client = self._clients.pop(descriptor)
        connection.close()
        for number in list(client.streams.values()):
            self._agent.out += Frame(Kind.CLOSE, number).build()
            self._forget(number)
