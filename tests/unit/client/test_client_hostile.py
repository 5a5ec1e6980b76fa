"""A server that is none of ours: whatever it says is one HostError."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from pyvmm.client.qmp import Client
from pyvmm.errors import HostError


@pytest.mark.parametrize(
    "said",
    [
        b"SSH-2.0-x\n",
        b"null\n",
        b"[]\n",
        b"{}\n",
        b"\xff\n",
        b"[" * 100_000 + b"\n",
        b'{"QMP": {}}\n{"error": {}}\n',
        b'{"QMP": {}}\n{"error": "x"}\n',
        b'{"QMP": {}}\n{"error": {"class": 1, "desc": null}}\n',
        b'{"QMP": {}}\n{"event": 1}\n',
        b'{"QMP": {}}\n{"event": "X", "data": []}\n',
        b"x" * 100_000,
    ],
)
def test_a_server_of_another_kind_is_one_line(tmp_path: Path, said: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "sock"))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(said)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(HostError) as caught:
            Client(tmp_path / "sock", 5)
        thread.join(5)
    assert "\n" not in str(caught.value)
