"""What of the machine's files goes into the emulated host's initramfs, and which sizes it comes in."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pyvmm.errors import ConfigError
from pyvmm.host import inside, preload, preload_archive
from pyvmm.host.emulated import SIZES_MIB, EmulatedHost, memory_for
from pyvmm.images.cpio import CpioWriter, read_cpio


def test_a_file_comes_with_folders_and_links_on_the_way(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/file").write_text("x")
    (tmp_path / "link").symlink_to("real")
    archive = CpioWriter()
    tree = preload_archive.Tree(archive)
    tree.add(f"{tmp_path}/link/file")
    tree.add(f"{tmp_path}/real/file")
    base = str(tmp_path)[1:]
    entries = {entry.name: entry for entry in read_cpio(archive.build())}
    assert entries[f"{base}/real/file"].data == b"x"
    assert stat.S_ISLNK(entries[f"{base}/link"].mode)
    assert f"{base}/link/file" not in entries


def test_byte_code_is_not_checked_against_file_times(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text("x = 1\n")
    code = preload_archive._byte_code(str(source), str(tmp_path / "nothing.pyc"))
    assert code[4:8] == (1).to_bytes(4, "little")


def test_the_agents_own_sources_make_a_new_kit_and_others_do_not() -> None:
    host = preload.REPOSITORY / "pyvmm/host"
    assert not preload.is_own(str(host / "agent.py"))
    assert preload.is_own(str(host / "daemon.py"))
    assert not preload.is_own("/usr/lib/python3/os.py")


def test_a_changed_file_changes_the_digest(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("a")
    before = preload.stable_digest([str(file)])
    file.write_text("bb")
    assert preload.stable_digest([str(file)]) != before
    file.unlink()
    preload.stable_digest([str(file)])


@pytest.mark.parametrize("guest", [1, 512, 1024, 1025, 4096, 100_000])
def test_a_host_is_larger_than_its_guests(guest: int) -> None:
    assert memory_for(guest) >= guest + 512


def test_small_guests_share_one_size() -> None:
    assert memory_for(128) == memory_for(1024) == SIZES_MIB[0]


def test_a_host_without_memory_is_refused() -> None:
    with pytest.raises(ConfigError, match="256 MiB"):
        EmulatedHost.start(memory_mib=16)


def test_a_socket_keeps_its_path_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(inside.VARIABLE, raising=False)
    assert inside.socket_path("/tmp/x.sock") == "/tmp/x.sock"


def test_a_socket_has_a_short_stand_in_inside() -> None:
    long = "/" + "x" * 300
    assert len(inside.inner_socket(long)) < 108
    assert inside.inner_socket("/a/../b") == inside.inner_socket("/b")


def test_inside_a_host_the_user_knows_the_command_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(inside.VARIABLE, raising=False)
    assert inside.user_pid() == os.getpid()
    monkeypatch.setenv(inside.VARIABLE, "4711")
    assert inside.user_pid() == 4711
