"""`pyvmm exec`, `shell` and `cp`: words, a guest without sockets, errors in one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyvmm.cli.main import main
from tests.support.command_line import Run
from tests.support.fake_machine import FakeMachine


@pytest.fixture(autouse=True)
def no_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard input is empty."""
    saved, empty = os.dup(0), os.open("/dev/null", os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    monkeypatch.setattr("sys.stdin", open(os.devnull))
    yield  # type: ignore[misc]
    os.dup2(saved, 0)
    os.close(saved)


@pytest.mark.parametrize(
    "words",
    [
        ["exec", "web", "echo a b; exit 4"],
        ["exec", "web", "--", "echo a b; exit 4"],
        ["exec", "--", "echo a b; exit 4"],
        ["exec", "--name", "web", "echo a b; exit 4"],
        ["exec", "-n", "web", "sh", "-c", "echo a b; exit 4"],
        ["exec", "-C", "/", "web", "echo a b; exit 4"],
    ],
)
def test_a_command_runs_with_its_status(
    machine: FakeMachine, capfd: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert main(words) == 4
    assert capfd.readouterr() == ("a b\n", "")


def test_a_guest_without_sockets_runs_it_over_its_serial_port(
    machine: FakeMachine, capfd: pytest.CaptureFixture[str]
) -> None:
    machine.no_sessions = "the guest's kernel has no Hyper-V sockets (CONFIG_HYPERV_VSOCKETS)"
    assert main(["exec", "-C", "/tmp", "web", "true"]) == 3
    out, err = capfd.readouterr()
    assert out == "cd /tmp || exit 126; true"
    assert err.startswith(
        "pyvmm: the guest's kernel has no Hyper-V sockets (CONFIG_HYPERV_VSOCKETS): over its serial port"
    )


def test_errors_are_one_line(machine: FakeMachine, pyvmm: Run, tmp_path: Path) -> None:
    assert pyvmm("exec", "web").status == 2
    assert "no VM named 'other'" in pyvmm("exec", "other", "true").err
    assert "needs a terminal" in pyvmm("shell", "web").err
    assert pyvmm("cp", "a", "b").status == 2 and pyvmm("cp", "web:a", "other:b").status == 2
    assert pyvmm("cp", "web:/a", "web:/b", str(tmp_path / "no")).status == 2
    assert "no such file" in pyvmm("cp", str(tmp_path / "no"), "web:/tmp").err
    machine.state = "paused"
    assert pyvmm("exec", "web", "true").err.startswith("pyvmm: the guest does not run: its state is 'paused'; `cont`")
    machine.state = "running"
    machine.no_sessions = "no sockets"
    assert pyvmm("cp", "web:/etc/passwd", str(tmp_path)).err == "pyvmm: no sockets; files cannot be copied\n"


def test_files_are_copied_both_ways(machine: FakeMachine, pyvmm: Run, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "a:b").write_text("text")
    sent = pyvmm("cp", str(tmp_path / "a:b"), f"web:{tmp_path}/there")
    assert (sent.status, sent.err) == (0, "1 file, 4 bytes\n") and (tmp_path / "there/a:b").read_text() == "text"
    got = pyvmm("cp", "-q", f":{tmp_path}/there", str(tmp_path / "back"))
    assert (got.status, got.out, got.err) == (0, "", "") and (tmp_path / "back/a:b").read_text() == "text"
