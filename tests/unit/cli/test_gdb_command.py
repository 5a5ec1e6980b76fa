"""`pyvmm gdb`: GDB's command line, and what is refused. And `pyvmm run --gdb`'s values."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.support.command_line import Run
from tests.support.fake_machine import FakeMachine


def test_gdb_s_command_line_connects_by_a_pipe_and_has_the_user_s_commands(
    machine: FakeMachine, pyvmm: Run, tmp_path: Path
) -> None:
    (tmp_path / "vmlinux").write_bytes(b"\x7fELF")
    done = pyvmm("gdb", "web", "--print", "--vmlinux", str(tmp_path / "vmlinux"), "--ex", "bt full", "--batch")
    words = shlex.split(done.out)
    assert words[:4] == ["gdb", "-q", "-batch", str(tmp_path / "vmlinux")]
    assert words[4] == "-ex"
    assert words[5].startswith("target remote | ")
    assert shlex.split(words[5])[-4:] == ["gdb", "--socket", str(machine_socket(words[5])), "--pipe"]
    assert words[6:] == ["-ex", "bt full"]


def machine_socket(words: str) -> Path:
    return Path(shlex.split(words)[-2])


@pytest.mark.parametrize(
    ("words", "text", "status"),
    [
        (["gdb", "nope"], "no VM named 'nope'", 1),
        (["gdb", "web", "--print", "--pipe"], "exclude each other", 2),
        (["gdb", "web", "--listen", "1234"], "neither HOST:PORT nor a path", 1),
        (["gdb", "web", "--listen", "/nowhere/x"], "does not exist", 1),
        (["gdb", "web", "--listen", "no.such.host.invalid:1"], "no.such.host.invalid:1: ", 1),
        (["gdb", "web", "--print", "--vmlinux", "/nowhere"], "--vmlinux /nowhere: no such file", 1),
        (["gdb", "web", "--print", "--modules", "/nowhere"], "--modules /nowhere: no such folder", 1),
        (["run", "--gdb", "vm.toml"], "neither HOST:PORT nor a path with a slash", 2),
        (["run", "--gdb=99999"], "neither HOST:PORT nor a path with a slash", 2),
    ],
)
def test_bad_input_is_one_line_with_the_next_step(
    machine: FakeMachine, pyvmm: Run, words: list[str], text: str, status: int
) -> None:
    done = pyvmm(*words)
    assert (done.status, len(done.err.splitlines())) == (status, 1), done.err
    assert text in done.err


def test_run_takes_gdb_with_and_without_a_place(pyvmm: Run) -> None:
    assert 'gdb = "auto"' in pyvmm("run", "--gdb", "--print-config").out
    out = pyvmm("run", "--gdb", ":1234", "-S", "--print-config", "--", "true").out
    assert 'gdb = ":1234"' in out
    assert "paused = true" in out
