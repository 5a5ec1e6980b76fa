from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.loop import Loop
from tests.support.fake_machine import FakeMachine, serving


@pytest.fixture
def machine() -> FakeMachine:
    return FakeMachine()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vm.sock"


@pytest.fixture
def loop(machine: FakeMachine, path: Path) -> Iterator[Loop]:
    with serving(machine, path) as loop:
        yield loop
