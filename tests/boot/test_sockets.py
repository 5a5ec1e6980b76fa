"""Hyper-V sockets with Linux: sessions, programs of guest and host, a shared folder, both engines, 1 and 2 vCPUs."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from pyvmm.client.session import Session, collect, shell_words
from pyvmm.images.catalog import find_image
from pyvmm.session_protocol import PORT
from pyvmm.share.server import Server
from tests.support.booted import Booted

ECHO, SHARED = 7, 8
"""Ports of the host."""


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


@pytest.mark.parametrize(("image", "engine", "cpus"), [("debian-6.1", "kernel", 1), ("debian-6.12", "user", 2)])
def test_sessions_programs_and_a_shared_folder(tmp_path: Path, image: str, engine: str, cpus: int) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_text("from the host\n")
    (folder / "out").symlink_to("../secret")
    (tmp_path / "secret").write_text("secret\n")
    requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server = Server(theirs, os.open(folder, os.O_PATH), read_only=False)
    threading.Thread(target=server.run, daemon=True).start()

    def shared() -> socket.socket:
        requests.send(bytes(4))
        return socket.socket(fileno=socket.recv_fds(requests, 1, 1)[1][0])

    def echo() -> socket.socket:
        ours, program = socket.socketpair()
        threading.Thread(target=lambda: program.sendall(program.recv(100).upper()), daemon=True).start()
        return ours

    initrd = find_image(image, build=False, features=("share",)).initrd
    with Booted(image, engine=engine, cpus=cpus, initrd=initrd) as guest:
        vsock = guest.machine.services.vsock(guest.machine.loop)
        vsock.services = {ECHO: lambda port, done: done(echo()), SHARED: lambda port, done: done(shared())}
        assert in_session(guest, "echo out; echo err >&2; exit 7") == (7, b"out\n", b"err\n")
        assert in_session(guest, "head -c 500000 /dev/zero")[1] == bytes(500_000)
        guest_end = "echo hello; read line; echo $line >&2"
        found = in_session(guest, f"/etc/pyvmm/session connect {ECHO} /bin/sh -c '{guest_end}'")
        assert found == (0, b"", b"HELLO\n")
        assert in_session(guest, "/etc/pyvmm/session connect 9 /bin/true")[0] == 110, "ETIMEDOUT: refused"
        check_share(guest, folder)
        guest.machine.reset()
        guest.until(lambda: not guest.machine.agent.ready, 10, "the reset")
        assert in_session(guest, "echo again")[1] == b"again\n"
    requests.close()
