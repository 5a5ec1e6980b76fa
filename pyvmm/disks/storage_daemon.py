"""Images of other formats than raw, through QEMU's storage daemon: a process of its own that serves one over NBD.

    pyvmm --NBD, 8 connections--> qemu-storage-daemon --> image.qcow2
          --QMP, a socket pair-->

NBD, and not the daemon's FUSE or vhost-user exports: it needs no root, no kernel modules and no shared guest memory,
and a client is 150 lines. The daemon is started before pyvmm is confined, and its sockets are open then. It locks the
image as QEMU does, and is told to end by QMP, as a confined process may not send signals; if pyvmm is killed the
kernel sends it SIGTERM, at which it closes the image in order.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time

from pyvmm.client.qmp import Client
from pyvmm.disks.nbd import Connection, NbdImage
from pyvmm.disks.spec import DiskSpec
from pyvmm.errors import ConfigError, HostError
from pyvmm.paths import runtime_folder
from pyvmm.process import kill_with_parent

PROGRAM = "qemu-storage-daemon"
CONNECTIONS = 8
"""As many as the device has threads."""
START_LIMIT = 60.0
"""Seconds until the daemon serves: under emulation it takes some."""
END_LIMIT = 20.0
"""Seconds in which it must have written back what it holds and ended."""


def open_with_daemon(spec: DiskSpec) -> NbdImage:
    """Start a storage daemon for an image. Raises ConfigError, HostError."""
    program = shutil.which(PROGRAM)
    if program is None:
        raise ConfigError(f"{spec.path}: format={spec.format} needs {PROGRAM}: apt-get install qemu-system-common")
    if not os.access(spec.path, os.R_OK if spec.read_only else os.R_OK | os.W_OK):
        why = os.strerror(2 if not os.path.exists(spec.path) else 13)
        raise ConfigError(f"{spec.path}: {why}")
    monitor, theirs = socket.socketpair()
    with tempfile.TemporaryDirectory(prefix="disk-", dir=runtime_folder()) as folder:
        place = os.path.join(folder, "nbd")
        with open(os.path.join(folder, "errors"), "w+b") as errors, theirs:
            process = subprocess.Popen(
                [program, *_options(spec, place, theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                preexec_fn=kill_with_parent(signal.SIGTERM),
                start_new_session=True,
            )
            daemon = Daemon(process, monitor)
            try:
                connections = [Connection(_connect(place, process), "disk") for _ in range(CONNECTIONS)]
            except BaseException as error:
                daemon.kill()
                errors.seek(0)
                lines = errors.read().decode(errors="replace").strip().splitlines()
                if isinstance(error, HostError) and lines:
                    raise ConfigError(f"{spec.path}: {lines[-1].partition(': ')[2] or lines[-1]}") from error
                raise
    return NbdImage(connections, spec.path, str(spec.format), daemon.end)


def _options(spec: DiskSpec, place: str, monitor: int) -> list[str]:
    name = os.path.abspath(spec.path).replace(",", ",,")
    read_only, writable = ("on", "off") if spec.read_only else ("off", "on")
    return [
        *("--chardev", f"socket,id=monitor,fd={monitor}", "--monitor", "chardev=monitor"),
        *("--blockdev", f"driver=file,node-name=file,filename={name},read-only={read_only},discard=unmap"),
        *("--blockdev", f"driver={spec.format},node-name=disk,file=file,read-only={read_only},discard=unmap"),
        *("--nbd-server", f"addr.type=unix,addr.path={place.replace(',', ',,')}"),
        *("--export", f"type=nbd,id=disk,node-name=disk,name=disk,writable={writable}"),
    ]


def _connect(place: str, process: subprocess.Popen[bytes]) -> socket.socket:
    """Connect to the daemon once it listens. Raises HostError if it ends before."""
    deadline = time.monotonic() + START_LIMIT
    while True:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            made.connect(place)
            return made
        except OSError as error:
            made.close()
            if process.poll() is not None:
                raise HostError(f"{PROGRAM} ended with status {process.returncode}") from error
            if time.monotonic() > deadline:
                raise HostError(f"{PROGRAM} does not serve after {START_LIMIT:.0f} s") from error
            time.sleep(0.02)


class Daemon:
    """A storage daemon that runs, and the socket of its monitor."""

    def __init__(self, process: subprocess.Popen[bytes], monitor: socket.socket) -> None:
        self._process = process
        self._monitor = monitor

    def end(self) -> None:
        """Have the daemon close the image and end."""
        with contextlib.suppress(HostError):
            Client(PROGRAM, timeout=END_LIMIT, connection=self._monitor).execute("quit")
        try:
            self._process.wait(END_LIMIT)
        except subprocess.TimeoutExpired:
            self.kill()
        self._monitor.close()

    def kill(self) -> None:
        """End the daemon at once, where that is allowed: not in a confined process, with whose end it ends."""
        with contextlib.suppress(PermissionError):
            self._process.kill()
            self._process.wait()
        self._monitor.close()
