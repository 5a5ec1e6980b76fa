"""Images of other formats than raw, through QEMU's storage daemon: a process of its own that serves one over NBD.

    pyvmm --NBD, 8 connections--> qemu-storage-daemon --> image.qcow2
          --the line, a socket pair--> sh, which ends the daemon when the line ends

NBD, and not the daemon's FUSE or vhost-user exports: it needs no root, no kernel modules and no shared guest memory,
and a client is 150 lines. A confined process can start none: the daemon is there before, or the client that adds a
disk starts it and sends what it has opened (`Served`). It locks the image as QEMU does. A confined process may not
send signals either: it writes to the line, or ends, and the shell at the other end sends SIGTERM, at which the daemon
closes the image in order.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import tempfile
import time
from dataclasses import dataclass

from pyvmm.disks.nbd import Connection, NbdImage
from pyvmm.disks.spec import PROGRAM, DiskSpec
from pyvmm.errors import ConfigError, HostError
from pyvmm.paths import runtime_folder

CONNECTIONS = 8
"""As many as the device has threads."""
START_LIMIT = 60.0
"""Seconds until the daemon serves: under emulation it takes some."""
END_LIMIT = 20.0
"""Seconds in which it must have written back what it holds and ended."""

KEEPER = (
    'exec 3<&0; { "$@" 3<&- & daemon=$!; { read line <&3; kill $daemon; } 2>/dev/null & reader=$!; exec 3<&-;'
    " wait $daemon; kill $reader 2>/dev/null; } &"
)
"""Runs the daemon until a line, or the end, comes on standard input, as no child of this process, which may end first
or be unable to wait for it. Its end is that of the line."""


@dataclass(frozen=True, slots=True)
class Served:
    """An image that a daemon serves: connections after their handshake, and the line."""

    connections: list[Connection]
    line: socket.socket

    def image(self, spec: DiskSpec) -> NbdImage:
        """Return the image; closing it ends the daemon."""
        return NbdImage(self.connections, spec.path, str(spec.format), self.end)

    def end(self) -> None:
        """Have the daemon close the image, and wait for its end."""
        with contextlib.suppress(OSError):
            self.line.settimeout(END_LIMIT)
            self.line.sendall(b"\n")
            self.line.recv(1)
        self.drop()

    def drop(self) -> None:
        """Close all descriptors, and wait for nothing: the daemon ends if no one else has the line."""
        for each in self.connections:
            each.drop()
        self.line.close()


def open_with_daemon(spec: DiskSpec) -> NbdImage:
    """Start a storage daemon for an image. Raises ConfigError, HostError."""
    return start_daemon(spec).image(spec)


def start_daemon(spec: DiskSpec) -> Served:
    """Start a storage daemon for an image and connect to it. Raises ConfigError, HostError."""
    program = shutil.which(PROGRAM)
    if program is None:
        raise ConfigError(f"{spec.path}: format={spec.format} needs {PROGRAM}: apt-get install qemu-system-common")
    if not os.access(spec.path, os.R_OK if spec.read_only else os.R_OK | os.W_OK):
        why = os.strerror(2 if not os.path.exists(spec.path) else 13)
        raise ConfigError(f"{spec.path}: {why}")
    line, theirs = socket.socketpair()
    connections: list[Connection] = []
    with tempfile.TemporaryDirectory(prefix="disk-", dir=runtime_folder()) as folder:
        place = os.path.join(folder, "nbd")
        with open(os.path.join(folder, "errors"), "w+b") as errors, theirs:
            pid = os.posix_spawn(
                "/bin/sh",
                ["sh", "-c", KEEPER, "sh", program, *_options(spec, place)],
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, theirs.fileno(), 0),
                    (os.POSIX_SPAWN_DUP2, errors.fileno(), 1),
                    (os.POSIX_SPAWN_DUP2, errors.fileno(), 2),
                ],
                setsid=True,
            )
            os.waitpid(pid, 0)  # the shell leaves the keeper behind
            theirs.close()
            try:
                for _ in range(CONNECTIONS):
                    connections.append(Connection(_connect(place, line), "disk"))
            except BaseException as error:
                Served(connections, line).drop()
                errors.seek(0)
                lines = errors.read().decode(errors="replace").strip().splitlines()
                if isinstance(error, HostError) and lines:
                    raise ConfigError(f"{spec.path}: {lines[-1].partition(': ')[2] or lines[-1]}") from error
                raise
    return Served(connections, line)


def _options(spec: DiskSpec, place: str) -> list[str]:
    name = os.path.abspath(spec.path).replace(",", ",,")
    read_only, writable = ("on", "off") if spec.read_only else ("off", "on")
    return [
        *("--blockdev", f"driver=file,node-name=file,filename={name},read-only={read_only},discard=unmap"),
        *("--blockdev", f"driver={spec.format},node-name=disk,file=file,read-only={read_only},discard=unmap"),
        *("--nbd-server", f"addr.type=unix,addr.path={place.replace(',', ',,')}"),
        *("--export", f"type=nbd,id=disk,node-name=disk,name=disk,writable={writable}"),
    ]


def _connect(place: str, line: socket.socket) -> socket.socket:
    """Connect to the daemon once it listens. Raises HostError if it ends before."""
    deadline = time.monotonic() + START_LIMIT
    while True:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            made.connect(place)
            return made
        except OSError as error:
            made.close()
            if select.select([line], [], [], 0.02)[0]:
                raise HostError(f"{PROGRAM} ended") from error
            if time.monotonic() > deadline:
                raise HostError(f"{PROGRAM} does not serve after {START_LIMIT:.0f} s") from error
