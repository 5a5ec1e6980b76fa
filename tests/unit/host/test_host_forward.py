"""Sockets forwarded from an emulated host, as they are on this side."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from pyvmm.errors import HostError
from pyvmm.host import daemon
from pyvmm.host.client import current_umask
from pyvmm.host.forwards import Forward
from pyvmm.host.inside import inner_socket
from pyvmm.paths import runtime_folder


@pytest.fixture(autouse=True)
def _runtime(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))


def test_what_a_killed_command_left_is_replaced_by_a_socket_for_the_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "vm.sock"
    before = os.umask(0)
    try:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        forward = Forward(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(HostError, match="in use"):
        Forward(path)
    forward.close()
    assert not path.exists()


def test_a_debugger_s_port_is_bound_outside_and_leads_to_a_socket_inside() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = free.getsockname()
    forward = Forward(place)
    with socket.create_connection(place), pytest.raises(HostError, match="in use; choose another"):
        Forward(place)
    forward.close()
    assert forward.inner == inner_socket(place) != inner_socket(("127.0.0.1", place[1] ^ 1))


def test_the_umask_is_read_without_changing_it() -> None:
    before = os.umask(0o026)
    try:
        assert current_umask() == 0o026
        assert os.umask(0o026) == 0o026
    finally:
        os.umask(before)


def test_a_daemon_that_was_killed_is_not_taken_for_one_that_runs_by_its_pid() -> None:
    folder = runtime_folder() / "emulated-host"
    folder.mkdir()
    (folder / "host.json").write_text(f'{{"pid": {os.getpid()}, "memory_mib": 1536, "idle": 9}}')
    assert daemon.connect() is None
    assert daemon.status() == "no emulated host is running"
