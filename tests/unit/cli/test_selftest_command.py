"""`pyvmm selftest`'s table, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pyvmm.cli.commands import selftest
from pyvmm.selftest import run
from pyvmm.selftest.rows import Row
from tests.support.command_line import Run


class FakeTest:
    """A run of two rows; the second is `last`, or Ctrl-C instead of it."""

    last: Row | None = Row("user engine, 1 vCPU", "boot", "failed", 1.5, "Linux does not find Hyper-V")

    def __init__(self, kernel: Path, initrd: Path, plans: tuple[Any, ...], show: Any) -> None:
        self._show = show
        self.rows: list[Row] = []

    def run(self) -> None:
        for row in (Row("KVM", "speed", "ok", 0.25, "fast"), self.last):
            if row is None:
                raise KeyboardInterrupt
            self._show(row, False)
            self.rows.append(row)
            self._show(row, True)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[FakeTest]:
    monkeypatch.setattr(run, "SelfTest", FakeTest)
    monkeypatch.setattr(FakeTest, "last", FakeTest.last)
    monkeypatch.chdir(tmp_path)
    return FakeTest


def go(path: Path | None, *, as_json: bool = False) -> int:
    return selftest._run(Path("k"), Path("i"), True, path, as_json, "")


def test_a_row_is_a_line_under_its_group_and_a_failure_the_status(
    fake: type[FakeTest], capsys: Any, tmp_path: Path
) -> None:
    assert go(tmp_path / "r.txt") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "KVM"
    assert lines[1].split() == ["ok", "speed", "0.25", "s", "fast"]
    assert lines[3].split()[:4] == ["--", "boot", "1.50", "s"]
    assert lines[-2:] == ["1 ok, 1 failed, 0 skipped", f"Report: {tmp_path / 'r.txt'}"]


def test_a_terminal_shows_the_step_that_runs(
    fake: type[FakeTest], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    go(None)
    printed = capsys.readouterr().out.replace("\x1b[31m\x1b[1m", "").replace("\x1b[0m", "")
    assert "..  boot\r\x1b[K--  boot" in printed


def test_all_ok_is_status_0(fake: type[FakeTest], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake, "last", Row("user engine, 1 vCPU", "boot", "skipped", 0.0, "no"))
    assert go(None) == 0


def test_json_is_the_report_and_nothing_else(fake: type[FakeTest], capsys: Any) -> None:
    go(None, as_json=True)
    assert [row["status"] for row in json.loads(capsys.readouterr().out)["rows"]] == ["ok", "failed"]


def test_an_interrupted_run_leaves_its_report(
    fake: type[FakeTest], capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake, "last", None)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["complete"] is False
    assert "interrupted" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (("--report", "/nowhere/r.txt"), 1, "--report FILE names another place"),
        (("--report", "/"), 1, "it is a folder"),
        (("--image", "debian-99"), 1, "no image is named 'debian-99'"),
        (("--host", "here"), 2, "--help"),
        (("now",), 2, "--help"),
    ],
)
def test_bad_input_is_one_line(
    pyvmm: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: tuple[str, ...], status: int, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pyvmm.launch.where.wants_emulated", lambda host: False)
    result = pyvmm("selftest", *words)
    assert (result.status, result.err.count("\n")) == (status, 1)
    assert text in result.err
