"""A debugger's way to a machine: the vmlinux beside a kernel, symbols of modules, bytes passed on."""

from __future__ import annotations

import base64
import socket
import threading
from pathlib import Path
from typing import Any, cast

import pytest

from pyvmm.client.gdb import find_scripts, find_vmlinux, relay, symbol_commands
from pyvmm.client.qmp import Client
from pyvmm.errors import ConfigError, HostError
from pyvmm.gdb_place import gdb_place, parse_place, show_place
from tests.support.fake_machine import FakeMachine, serving


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (":1234", ("127.0.0.1", 1234)),
        ("localhost:1", ("localhost", 1)),
        ("[::1]:65535", ("::1", 65535)),
        ("./x", Path("x")),
        ("/run/a:1", Path("/run/a:1")),
    ],
)
def test_a_place_is_a_port_or_a_path(text: str, place: object) -> None:
    assert parse_place(text) == place
    assert parse_place(show_place(parse_place(text)).replace("x", "./x")) == place


@pytest.mark.parametrize(
    "text", ["", "x", "1234", "h:", "h:0", "h:65536", "h:-1", "h:+1", "h:1a", "h:\u0661", "h:" + "9" * 5000]
)
def test_anything_else_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match=r"as in :1234 or \./gdb\.sock") as caught:
        parse_place(text)
    assert len(str(caught.value)) < 200


def test_the_default_place_is_beside_the_monitor_s() -> None:
    assert gdb_place("auto", Path("/run/vm.sock")) == Path("/run/vm.gdb")
    assert gdb_place(None, Path("/run/vm.sock")) is None


def test_the_vmlinux_of_a_kernel_is_found(tmp_path: Path) -> None:
    boot = tmp_path / "arch/x86/boot"
    boot.mkdir(parents=True)
    (boot / "bzImage").write_bytes(b"MZ")
    assert find_vmlinux(boot / "bzImage") is None
    assert find_vmlinux(tmp_path / "missing") is None
    (tmp_path / "vmlinux").write_bytes(b"\x7fELF")
    for kernel in (boot / "bzImage", tmp_path / "vmlinux", tmp_path / "bzImage"):
        assert find_vmlinux(kernel) == tmp_path / "vmlinux"


def test_the_kernel_s_scripts_are_found_or_their_option_is_named(tmp_path: Path) -> None:
    vmlinux, source = tmp_path / "vmlinux", tmp_path / "source.py"
    for path in (vmlinux, None):
        with pytest.raises(ConfigError, match="CONFIG_GDB_SCRIPTS"):
            find_scripts(path)
    source.touch()
    (tmp_path / "vmlinux-gdb.py").symlink_to(source)
    assert find_scripts(vmlinux) == [tmp_path / "vmlinux-gdb.py", source]


class Guest:
    """A monitor's client whose guest has the modules that `lines` tell."""

    def __init__(self, lines: str, state: str = "running") -> None:
        self.lines, self.state = lines, state

    def execute(self, name: str, arguments: Any = None) -> Any:
        if name == "query-status":
            return {"status": self.state}
        return {"status": 0, "stdout": base64.b64encode(self.lines.encode()).decode()}


def client(lines: str, state: str = "running") -> Client:
    return cast(Client, Guest(lines, state))


def test_symbols_are_loaded_for_modules_whose_files_are_there(tmp_path: Path) -> None:
    (tmp_path / "drivers").mkdir()
    for name in ("hv_balloon.ko", "hv-utils.ko", "other.ko"):
        (tmp_path / "drivers" / name).touch()
    lines = """hv_balloon .text 0xffffffffc0010000
hv_balloon .data 0xffffffffc0012000
hv_utils .text 0xffffffffc0020000
missing .text 0xffffffffc0030000
evil .text 0x1; shell rm -rf /
$(x) .text 0x1
"""
    assert symbol_commands(client(lines), tmp_path) == [
        f'add-symbol-file "{tmp_path}/drivers/hv_balloon.ko" 0xffffffffc0010000 -s .data 0xffffffffc0012000',
        f'add-symbol-file "{tmp_path}/drivers/hv-utils.ko" 0xffffffffc0020000',
    ]


def test_symbols_without_a_folder_or_a_running_guest_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        symbol_commands(client(""), tmp_path / "x")
    with pytest.raises(ConfigError, match="does not run"):
        symbol_commands(client("", "paused"), tmp_path)
    with pytest.raises(HostError, match="no addresses"):
        symbol_commands(client(""), tmp_path)


def test_bytes_are_passed_on_until_one_side_ends(tmp_path: Path) -> None:
    machine = FakeMachine("web")
    with serving(machine, tmp_path / "s"):
        near, far = socket.socketpair()
        client = Client(tmp_path / "s")
        thread = threading.Thread(target=relay, args=(client, far.fileno(), far.fileno()))
        thread.start()
        near.settimeout(10)
        assert near.recv(100) == b"web\n"
        near.sendall(b"$g#67")
        assert machine.debugged[0].recv(100) == b"$g#67"
        machine.debugged[0].close()
        thread.join(10)
        assert not thread.is_alive()
        near.close()
        far.close()
