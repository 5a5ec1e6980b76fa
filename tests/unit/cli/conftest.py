from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.cli.main import main
from pyvmm.client import registry
from tests.support.command_line import Result, Run
from tests.support.fake_machine import FakeMachine, serving


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("PYVMM_DEBUG", raising=False)
    return tmp_path


@pytest.fixture
def machine() -> Iterator[FakeMachine]:
    """A machine called web, running."""
    made = FakeMachine("web")
    with registry.claim("web", ["pyvmm", "run"]) as registration, serving(made, registration.socket):
        yield made


@pytest.fixture
def pyvmm(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in this process."""

    def run(*arguments: str) -> Result:
        status = main(list(arguments))
        out, err = capsys.readouterr()
        return Result(status, out, err)

    return run
