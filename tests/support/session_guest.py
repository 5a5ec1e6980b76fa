"""Sessions and a shared folder in a booted Linux guest, as the host's programs use them."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyvmm.client.session import Session, collect, shell_words
from pyvmm.session_protocol import PORT
from pyvmm.share.server import Server
from tests.support.booted import Booted

SHARED = 8
"""The host's port that serves the folder."""


def in_session(guest: Booted, command: str) -> tuple[int, bytes, bytes]:
    """Run a command in a session; its status, output and errors."""
    ports: list[object] = []
    failed: list[str] = []
    done: list[tuple[int, bytes, bytes, bool]] = []
    access = guest.machine.monitor.guest
    access.start_sessions(ports.append)
    guest.until(lambda: ports, 60, "the program for sessions")
    assert ports == [PORT]
    ours, theirs = socket.socketpair()
    access.connect(PORT, lambda: theirs, failed.append)
    words = shell_words(command)
    thread = threading.Thread(
        target=lambda: done.append(collect(Session(ours), words, seconds=40, limit=1 << 20)), daemon=True
    )
    thread.start()
    guest.until(lambda: done or failed, 60, f"the end of {command!r}")
    assert not failed
    return done[0][:3]


def check_share(guest: Booted, folder: Path) -> None:
    """Mount the shared folder, read and write in it, and do not leave it."""
    mount = f"mkdir /mnt; /etc/pyvmm/session fuse {SHARED} /mnt"
    assert in_session(guest, f"{mount} </dev/null >/dev/null 2>&1")[0] == 0
    found = in_session(guest, "cd /mnt && cat file && echo new >made; cat out ../secret; grep fuse /proc/mounts >&2")
    assert found[1] == b"from the host\n", found
    assert (folder / "made").read_text() == "new\n"


@contextmanager
def serving(guest: Booted, folder: Path) -> Iterator[None]:
    """Serve a folder with a file `file` and a link `out` that leads out of it."""
    (folder / "file").write_text("from the host\n")
    (folder / "out").symlink_to("../secret")
    (folder.parent / "secret").write_text("secret\n")
    requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server = Server(theirs, os.open(folder, os.O_PATH), read_only=False)
    threading.Thread(target=server.run, daemon=True).start()

    def shared() -> socket.socket:
        requests.send(bytes(4))
        return socket.socket(fileno=socket.recv_fds(requests, 1, 1)[1][0])

    vsock = guest.machine.services.vsock(guest.machine.loop)
    vsock.services[SHARED] = lambda port, done: done(shared())
    try:
        yield
    finally:
        requests.close()
