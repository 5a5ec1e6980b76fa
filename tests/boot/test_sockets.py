"""Hyper-V sockets with Linux: sessions, programs of guest and host, a shared folder, both engines, 1 and 2 vCPUs."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from pyvmm.images.catalog import find_image
from tests.support.booted import Booted
from tests.support.session_guest import check_share, in_session, serving

ECHO = 7
"""The host's port that answers in capitals."""


@pytest.mark.parametrize(("image", "engine", "cpus"), [("debian-6.1", "kernel", 1), ("debian-6.12", "user", 2)])
def test_sessions_programs_and_a_shared_folder(tmp_path: Path, image: str, engine: str, cpus: int) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()

    def echo() -> socket.socket:
        ours, program = socket.socketpair()
        threading.Thread(target=lambda: program.sendall(program.recv(100).upper()), daemon=True).start()
        return ours

    initrd = find_image(image, build=False, features=("share",)).initrd
    with Booted(image, engine=engine, cpus=cpus, initrd=initrd) as guest, serving(guest, folder):
        vsock = guest.machine.services.vsock(guest.machine.loop)
        vsock.services[ECHO] = lambda port, done: done(echo())
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
