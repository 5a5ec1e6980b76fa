from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import pyvmm
from pyvmm.api import machine as api
from pyvmm.tail import Tail
from tests.support.fake_machine import FakeMachine, serving


class FakeBackend:
    """A machine that runs elsewhere: the test plays it by a FakeMachine's monitor."""

    def __init__(self, socket: Path) -> None:
        self.name, self.socket = "fake", socket
        self.console = Tail(100)
        self.sent = b""
        self.alive = True
        self.why = ""

    def trouble(self) -> str:
        return self.why

    def send(self, data: bytes) -> None:
        self.sent += data

    def join(self, timeout: float) -> bool:
        return not self.alive

    def close(self) -> None:
        self.alive = False


@pytest.fixture
def inner() -> FakeMachine:
    return FakeMachine()


@pytest.fixture
def backend(inner: FakeMachine, tmp_path: Path) -> Iterator[FakeBackend]:
    made = FakeBackend(tmp_path / "vm.sock")
    with serving(inner, made.socket):
        stop = inner.ended

        def ended() -> None:
            made.alive = False
            stop()

        inner.ended = ended
        yield made


@pytest.fixture
def vm(backend: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> Iterator[pyvmm.Machine]:
    monkeypatch.setattr(api.Machine, "_make_backend", lambda self: backend)
    with pyvmm.Machine() as made:
        yield made.start()
