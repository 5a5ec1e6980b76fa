from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pyvmm.client import registry
from pyvmm.errors import ConfigError, HostError
from pyvmm.paths import runtime_folder


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "pyvmm"


def test_names_are_handed_out_and_found_again(folder: Path) -> None:
    with registry.claim(None, ["pyvmm", "run"]) as one, registry.claim() as two:
        assert (one.name, two.name) == ("vm", "vm2")
        assert [each.name for each in registry.running()] == ["vm", "vm2"]
        found = registry.find("vm")
        assert (found.pid, found.argv, found.socket) == (os.getpid(), ["pyvmm", "run"], folder / "vm.sock")
    assert registry.running() == []
    assert list(folder.iterdir()) == []


def test_a_process_that_is_more_than_the_machine_is_known_as_such(folder: Path) -> None:
    with registry.claim("failed", shared=True), registry.claim("web"):
        assert [(each.name, each.shared) for each in registry.running()] == [("failed", True), ("web", False)]


def test_the_folder_is_the_users_alone(folder: Path) -> None:
    runtime_folder()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_others_can_write_is_refused(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(HostError, match="not yours alone"):
        runtime_folder()


def test_a_folder_that_is_a_link_is_refused(folder: Path, tmp_path: Path) -> None:
    folder.symlink_to(tmp_path)
    with pytest.raises(HostError, match="not yours alone"):
        runtime_folder()


def test_a_name_in_use_is_refused(folder: Path) -> None:
    with registry.claim("web"), pytest.raises(ConfigError, match=f"named 'web' runs already.*pid {os.getpid()}"):
        registry.claim("web")


@pytest.mark.parametrize("name", ["", "../x", "a b", "512M", "2", ".hidden", "x" * 49, "a.sock", "ü"])
def test_names_that_would_confuse_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a VM"):
        registry.claim(name)


def test_what_a_killed_machine_left_is_cleaned_and_its_name_is_free(folder: Path) -> None:
    code = "import sys, time; from pyvmm.client import registry as r; c = r.claim('web'); c.socket.touch(); print(); \
sys.stdout.flush(); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert [each.name for each in registry.running()] == ["web"]
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (folder / "web.sock").exists()
    assert registry.running() == []
    assert list(folder.iterdir()) == []
    registry.claim("web").release()


def test_half_written_entries_do_not_count(folder: Path) -> None:
    runtime_folder()
    (folder / "bad.json").write_text("{")
    assert registry.running() == []


def test_find_without_a_name_wants_exactly_one() -> None:
    with pytest.raises(ConfigError, match="no VM is running"):
        registry.find()
    with registry.claim("a"):
        assert registry.find().name == "a"
        with registry.claim("b"), pytest.raises(ConfigError, match=r"2 VMs are running \(a, b\)"):
            registry.find()


def test_find_takes_the_path_of_a_socket() -> None:
    assert registry.find("/tmp/x.sock").socket == Path("/tmp/x.sock")


def test_find_says_which_names_there_are() -> None:
    with registry.claim("a"), pytest.raises(ConfigError, match=r"no VM named 'b' \(running: a\)"):
        registry.find("b")


def test_looking_for_machines_leaves_a_kept_up_emulated_host_alone(folder: Path) -> None:
    """Its files were taken for a dead machine's, named `host`, and removed."""
    from pyvmm.host import daemon

    daemon._socket_path().touch()
    assert registry.running() == []
    assert daemon._socket_path().exists()


def test_a_name_whose_holder_was_killed_is_free_and_its_socket_replaced(folder: Path) -> None:
    from pyvmm.unix_socket import ListeningSocket

    _kill_holder("web")
    assert (folder / "web.sock").exists()
    with registry.claim("web") as taken, ListeningSocket(taken.socket, 1):
        assert (folder / "web.sock").is_socket()


_HOLDER = """
import sys
from pyvmm.client import registry
from pyvmm.unix_socket import ListeningSocket
taken = registry.claim(sys.argv[1])
listening = ListeningSocket(taken.socket, 1)
print("here", flush=True)
sys.stdin.read()
"""


def _kill_holder(name: str) -> None:
    """Kill a process that has claimed `name` and listens on its socket."""
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline()
        holder.kill()


def test_a_new_holder_is_starting_whatever_socket_a_killed_one_left(folder: Path) -> None:
    _kill_holder("web")
    with registry.claim("web") as taken:
        assert registry.is_starting(taken.entry)
