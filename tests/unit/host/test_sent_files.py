"""Descriptors that a client of a forwarded socket sends: their files are opened at the other end of the port."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from pyvmm.host.endpoint import Endpoint, describe_sent, open_sent
from pyvmm.host.protocol import ProtocolError


def test_file_comes_with_the_bytes_that_it_was_sent_with(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(b"content")
    left, right = socket.socketpair()
    outer, inner = Endpoint(left.fileno()), Endpoint(right.fileno())
    client, forwarded = socket.socketpair()
    connected, server = socket.socketpair()
    for each in (forwarded, connected):
        each.setblocking(False)
    kept: list[int] = []
    outer.source(7, 0, forwarded.fileno(), lambda: None, files=kept)
    inner.sink(7, 0, connected.fileno(), lambda: None)
    client.sendall(b"before ")
    outer.step(0), outer.step(0), inner.step(0)
    with open(path, "r+b") as file:
        socket.send_fds(client, [b"with the file"], [file.fileno()])
    client.sendall(b" and after")
    for _ in range(6):
        outer.step(0.01)
        inner.step(0.01)
    data, files = b"", []
    while not data.endswith(b"after"):
        piece, found, _, _ = socket.recv_fds(server, 4096, 4)
        if found:
            assert b"with" in data + piece
        data, files = data + piece, files + found
    assert data == b"before with the file and after"
    (fd,) = files
    assert os.pread(fd, 7, 0) == b"content"
    os.pwrite(fd, b"C", 0)
    assert path.read_bytes() == b"Content"
    assert len(kept) == 1, "the client's own descriptor, and its lock, stay"
    for each in (fd, *kept):
        os.close(each)
    for each in (left, right, client, forwarded, connected, server):
        each.close()


def test_file_that_is_gone_or_no_file_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"")
    with open(path, "rb") as file:
        sent = describe_sent(file.fileno())
        found = open_sent(sent)
        assert found is not None
        os.close(found)
        path.unlink()
        assert open_sent(describe_sent(file.fileno())) is None
    reader, writer = os.pipe()
    assert open_sent(describe_sent(reader)) is None
    os.close(reader), os.close(writer)


@pytest.mark.parametrize("payload", [b"", b"1", b"{}", b'{"path": "/x"}', b'{"path": "/x", "flags": "q"}', b"\xff"])
def test_frame_that_names_no_file_is_refused(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        open_sent(payload)


def test_flags_that_would_make_or_empty_a_file_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert open_sent(json.dumps({"path": str(path), "flags": os.O_CREAT | os.O_RDWR}).encode()) is None
    path.write_bytes(b"kept")
    found = open_sent(json.dumps({"path": str(path), "flags": os.O_TRUNC | os.O_RDWR}).encode())
    assert found is not None and path.read_bytes() == b"kept"
    os.close(found)
