"""Which command line the emulated host gets: the one that `main` was called with, whatever this process is called."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from pyvmm.cli import main as command_line
from pyvmm.client import registry
from pyvmm.disks.open import open_locked
from pyvmm.disks.spec import DiskSpec
from pyvmm.errors import ConfigError
from pyvmm.launch import where


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """What would run in an emulated host, and the command line the registry shows meanwhile."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["/usr/bin/notebook", "run", "-m", "64G"])
    monkeypatch.setattr("pyvmm.launch.build.build_config", lambda options, **fields: _Config(**fields))
    made: list[list[str]] = []

    def run_emulated(arguments: list[str], memory: int, sockets: list[Path], **more: object) -> int:
        made.append(list(arguments))
        made.append(registry.running()[0].argv)
        return 7

    monkeypatch.setattr(where, "run_emulated", run_emulated)
    return made


class _Config:
    maximum_memory = 1 << 30
    disks = ()
    name = ""

    def __init__(self, **fields: Any) -> None:
        self.fields = fields


@pytest.mark.parametrize(
    "words",
    [
        ["run", "--host", "emulated", "-m", "1G", "--", "uname", "-a"],
        ["run", "--host=emulated", "--append", "run", "--name", "web", "--", "run", "--", "x"],
        ["tour", "--host", "emulated", "--memory=1G", "--json"],
    ],
)
def test_main_passes_its_own_arguments_on(sent: list[list[str]], words: list[str]) -> None:
    assert command_line.main(words) == 7
    inner, shown = sent
    assert inner[0] == words[0]
    assert inner[-len(words) + 1 :] == words[1:]
    assert shown == ["pyvmm", *words]


def test_a_file_of_options_is_passed_on_by_name(sent: list[list[str]], tmp_path: Path) -> None:
    (tmp_path / "vm.toml").write_text('host = "emulated"\nmemory = "1G"\n')
    words = ["run", str(tmp_path / "vm.toml"), "--cpus", "2"]
    assert command_line.main(words) == 7
    assert sent[0][-3:] == words[1:]


def test_disks_are_locked_here_while_the_emulated_host_uses_them(
    sent: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock inside does not reach the machine whose files these are."""
    spec = DiskSpec(str(tmp_path / "disk.img"))
    Path(spec.path).write_bytes(bytes(512))
    monkeypatch.setattr(_Config, "disks", (spec,))

    def run_emulated(*arguments: object, **more: object) -> int:
        with pytest.raises(ConfigError, match="another process uses it"):
            open_locked(spec)
        return 9

    monkeypatch.setattr(where, "run_emulated", run_emulated)
    assert command_line.main(["run", "--host", "emulated", "--disk", spec.path]) == 9
    os.close(open_locked(spec))
