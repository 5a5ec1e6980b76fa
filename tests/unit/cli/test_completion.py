"""What the shells offer after <Tab>."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pyvmm.client import registry
from tests.support.command_line import Run
from tests.support.fake_machine import FakeMachine


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed(pyvmm: Run, shell: str) -> None:
    assert "_PYVMM_COMPLETE" in pyvmm("completion", shell).out


def complete(words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    from pyvmm.cli.main import main

    monkeypatch.setenv("_PYVMM_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) if words.endswith(" ") else len(words.split()) - 1))
    with pytest.raises(SystemExit):
        main([])
    return [line.partition(",")[2] for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("words", "candidates"),
    [
        ("pyvmm sta", ["status"]),
        ("pyvmm balloon ", ["web"]),
        ("pyvmm balloon web ", [""]),
        ("pyvmm top web ", [""]),
        ("pyvmm run --trace balloon.target", ["balloon.target_set"]),
        ("pyvmm run --console st", ["st", "stdio"]),
        ("pyvmm run --mem-backend m", ["memfd"]),
        ("pyvmm run --enlightenments h", ["help"]),
        ("pyvmm run --enlightenments stimer,-cr", ["stimer,-crash"]),
        ("pyvmm run --enlightenments crash,+sti", ["crash,+stimer", "crash,+stimer-direct"]),
        ("pyvmm run --fault torndown-w", ["torndown-withheld"]),
        ("pyvmm run --fault message.out:dr", ["message.out:drop"]),
        ("pyvmm run --fault message.out:drop,type=OPEN", ["message.out:drop,type=OPEN_RESULT"]),
        ("pyvmm run --debug m", ["mmio", "msr"]),
        ("pyvmm run --debug msr,m", ["msr,mmio"]),
        ("pyvmm status w", ["web"]),
        ("pyvmm stop --name ", ["web"]),
        ("pyvmm image show debian-7", ["debian-7.2", "debian-7.3"]),
        ("pyvmm run --image debian-5", ["debian-5.10"]),
        ("pyvmm run --image debian-12", ["debian-12-root"]),
        ("pyvmm run --disk a.img,ro,format=q", ["a.img,ro,format=qcow2"]),
        ("pyvmm run --disk a.img,werror=s", ["a.img,werror=stop"]),
        ("pyvmm disk remove w", ["web"]),
    ],
)
def test_words_are_completed(
    machine: FakeMachine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: str,
    candidates: list[str],
) -> None:
    assert complete(words, monkeypatch, capsys) == candidates


def test_run_offers_files_of_options_as_first_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "vms").mkdir()
    for name in ("a.toml", "a.txt", "vms/b.toml"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert complete("pyvmm run ", monkeypatch, capsys) == ["", "a.toml"]
    assert complete("pyvmm run vms/", monkeypatch, capsys) == ["vms/", "vms/b.toml"]
    assert complete("pyvmm run a.toml ", monkeypatch, capsys) == [""]
    assert complete("pyvmm run nowhere/", monkeypatch, capsys) == ["nowhere/"]


def test_completion_does_not_wait_for_a_machine_that_starts(
    runtime: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pyvmm.cli.target.time.sleep", lambda seconds: pytest.fail("it waits"))
    with registry.claim("web"):
        assert complete("pyvmm wait web --channel ", monkeypatch, capsys) == [""]


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_fish_shows_a_description_past_its_first_comma(pyvmm: Run, tmp_path: Path) -> None:
    (tmp_path / "pyvmm").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pyvmm "$@"\n')
    (tmp_path / "pyvmm").chmod(0o755)
    (tmp_path / "p.fish").write_text(pyvmm("completion", "fish").out)
    found = subprocess.run(
        ["fish", "--no-config", "-c", f"source {tmp_path}/p.fish; complete -C 'pyvmm wai'"],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert found.stdout == "wait\tWait for a machine's end, an event, a driver.\n"
