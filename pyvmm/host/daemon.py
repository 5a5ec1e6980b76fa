"""The host daemon: a process that owns a QEMU and serves commands over a Unix socket until it is idle.

It ends when asked to, when QEMU ends, or after IDLE_SECONDS without a client. `router` carries its clients' frames.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import time
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from pyvmm.errors import HostError, PyvmmError
from pyvmm.files import Shape, parse_object
from pyvmm.host.boot_image import Progress
from pyvmm.host.emulated import EmulatedHost
from pyvmm.host.preload import agent_digest
from pyvmm.host.protocol import Frame, Kind
from pyvmm.host.router import Router
from pyvmm.paths import open_private, private_folder, runtime_folder
from pyvmm.unix_socket import ListeningSocket

IDLE_SECONDS = 30 * 60
START_LIMIT = 240.0  # seconds, a first boot included
LOCK_TIMEOUT = 1.0  # seconds that a process may hold the lock just to test it


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
    until = time.monotonic() + LOCK_TIMEOUT
    while not _try_lock(file):  # another process may hold it just to test it
        if time.monotonic() > until:
            raise HostError("another emulated host is starting: try again")
        time.sleep(0.05)
    os.ftruncate(file, 0)  # contents left by a killed daemon
    with (
        EmulatedHost.start(memory_mib=memory_mib, progress=lambda line: _report(report, line)) as host,
        ListeningSocket(_socket_path(), 32) as listener,
    ):
        record = {"pid": os.getpid(), "memory_mib": host.memory_mib, "idle": idle_seconds, "agent": agent_digest()}
        os.pwrite(file, json.dumps(record).encode(), 0)
        try:
            _report(report, "ready")
            os.close(report)
            Router(host, listener.socket, idle_seconds).serve()
        finally:
            os.ftruncate(file, 0)


def _report(report: int, line: str) -> None:
    with contextlib.suppress(OSError):
        os.write(report, line.encode() + b"\n")
