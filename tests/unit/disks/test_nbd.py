"""The NBD client against a server played by hand, and against QEMU's storage daemon where there is one."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import pack

import pytest

from pyvmm.disks import nbd
from pyvmm.disks.nbd import Connection, NbdImage
from pyvmm.disks.open import open_image
from pyvmm.disks.spec import PROGRAM, DiskSpec
from pyvmm.errors import ConfigError, HostError
from tests.support.qcow2 import make_qcow2

MIB = 1 << 20


def option_reply(kind: int, data: bytes = b"") -> bytes:
    return pack(">QIII", 0x3E889045565A9, 7, kind, len(data)) + data


GREETING = b"NBDMAGICIHAVEOPT" + pack(">H", 3)
EXPORT = option_reply(3, pack(">HQH", 0, MIB, 1 | 4)) + option_reply(1)


@contextmanager
def server(*answers: bytes) -> Iterator[socket.socket]:
    """A socket at whose other end are `answers`; what is sent to it is read and forgotten."""
    ours, theirs = socket.socketpair()
    theirs.sendall(b"".join(answers))
    theirs.shutdown(socket.SHUT_WR)

    def read() -> None:
        while theirs.recv(65536):
            pass

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield ours
    finally:
        ours.close()
        thread.join(5)
        theirs.close()


def test_export_tells_its_size_and_flags() -> None:
    with server(GREETING, EXPORT) as connected:
        connection = Connection(connected, "disk")
        assert (connection.size, connection.flags) == (MIB, 5)


@pytest.mark.parametrize(
    "answers",
    [
        [],
        [b"GET / HTTP/1.1\r\n\r\n"],
        [b"NBDMAGICIHAVEOPT" + pack(">H", 0)],
        [GREETING],
        [GREETING, bytes(20)],
        [GREETING, option_reply(3, b"")[:16], pack(">I", 1 << 30)],
        [GREETING, option_reply(1)],
        [GREETING, option_reply(1 << 31 | 6, b"no such export")],
        [GREETING, option_reply(3, pack(">HQH", 0, MIB, 0)), option_reply(1)],
    ],
)
def test_server_that_does_not_speak_nbd_is_refused(answers: list[bytes]) -> None:
    with server(*answers) as connected, pytest.raises(HostError):
        Connection(connected, "disk")


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (pack(">IIQ", 0x67446698, 28, 1), "No space left"),
        (pack(">IIQ", 0x67446698, 0, 2), "broke the protocol"),
        (bytes(16), "broke the protocol"),
        (b"", "ended"),
        (pack(">IIQ", 0x67446698, 0, 1) + bytes(100), "ended"),
    ],
)
def test_errors_of_a_request_are_os_errors(reply: bytes, error: str) -> None:
    with server(GREETING, EXPORT, reply) as connected:
        connection = Connection(connected, "disk")
        with pytest.raises(OSError, match=error):
            connection.request(nbd.READ, 0, 512, [memoryview(bytearray(512))])


def test_ranges_longer_than_a_request_may_be_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    replies = [pack(">IIQ", 0x67446698, 0, number) for number in range(1, 4)]
    flags = option_reply(3, pack(">HQH", 0, 1 << 40, 1 | 32)) + option_reply(1)
    asked: list[tuple[int, ...]] = []
    request = Connection.request

    def note(self: Connection, kind: int, offset: int, length: int, views: object = (), *, flags: int = 0) -> None:
        asked.append((kind, offset, length))
        request(self, kind, offset, length, flags=flags)

    monkeypatch.setattr(Connection, "request", note)
    with server(GREETING, flags, *replies) as connected:
        image = NbdImage([Connection(connected, "d")], "x", "qcow2", lambda: None)
        image.discard(512, 2 * nbd.LONGEST + 512)
    assert asked == [(4, 512, nbd.LONGEST), (4, 512 + nbd.LONGEST, nbd.LONGEST), (4, 512 + 2 * nbd.LONGEST, 512)]


@pytest.mark.skipif(shutil.which(PROGRAM) is None, reason=f"no {PROGRAM}")
def test_qcow2_image_is_read_and_written_through_the_storage_daemon(tmp_path: Path) -> None:
    path = tmp_path / "a,b.qcow2"
    make_qcow2(path, 64 * MIB)
    image = open_image(DiskSpec(str(path), format="qcow2"))
    assert (image.size, image.read_only, image.format) == (64 * MIB, False, "qcow2")
    data = os.urandom(3 * MIB)
    image.write([memoryview(data)[:1000], memoryview(data)[1000:]], 5 * 4096)
    image.write_zeroes(5 * 4096, 4096, unmap=True)
    image.flush()
    threads = [threading.Thread(target=image.discard, args=(40 * MIB, MIB)) for _ in range(10)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    with pytest.raises(ConfigError, match="cannot be resized"):
        image.resize(65 * MIB)
    with pytest.raises(ConfigError, match="another process"):
        open_image(DiskSpec(str(path), format="qcow2"))
    image.close()
    assert subprocess.run(["pgrep", "-f", str(path)], capture_output=True).returncode == 1, "the daemon has ended"
    image = open_image(DiskSpec(str(path), read_only=True, format="qcow2"))
    assert (image.size, image.read_only) == (64 * MIB, True)
    found = bytearray(3 * MIB)
    image.read([memoryview(found)[:77], memoryview(found)[77:]], 5 * 4096)
    assert found == bytes(4096) + data[4096:]
    with pytest.raises(OSError, match="Invalid argument"):
        image.write([memoryview(bytes(512))], 0)
    image.close()


@pytest.mark.skipif(shutil.which(PROGRAM) is None, reason=f"no {PROGRAM}")
def test_what_is_no_qcow2_image_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(MIB))
    with pytest.raises(ConfigError, match="qcow2 format") as error:
        open_image(DiskSpec(str(path), format="qcow2"))
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="No such file"):
        open_image(DiskSpec(str(tmp_path / "no"), format="qcow2"))


def test_missing_daemon_is_told_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="apt-get install qemu-system-common"):
        open_image(DiskSpec("x.vmdk", format="vmdk"))
