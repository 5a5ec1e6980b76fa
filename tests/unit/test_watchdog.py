"""The watchdog: a loop that stands still is told of once, with its place, and again when it goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.loop import Loop
from pyvmm.watchdog import Watchdog

PERIOD = 0.02
LIMIT = 10.0  # seconds until a test gives up


class Watched:
    """A loop in a thread, and what its watchdog says."""

    def __init__(self, note: Path) -> None:
        self.loop = Loop()
        self.said: list[str] = []
        self.dog = Watchdog(self.loop, self.said.append, period=PERIOD)
        self.note = note
        self.dog.keep_note(note)
        self.thread = threading.Thread(target=self.loop.run, daemon=True)

    def wait(self, lines: int) -> list[str]:
        until = time.monotonic() + LIMIT
        while len(self.said) < lines and time.monotonic() < until:
            time.sleep(PERIOD / 4)
        return self.said


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    made = Watched(tmp_path / "vm.stall")
    made.thread.start()
    made.dog.start()
    yield made
    made.loop.stop()
    made.thread.join(LIMIT)
    made.dog.stop()
    made.loop.close()


def hang_here(released: threading.Event) -> None:
    released.wait(LIMIT)


def test_a_blocked_loop_is_reported_once_with_its_place(watched: Watched) -> None:
    released = threading.Event()
    watched.loop.post(hang_here, released)
    (line,) = watched.wait(1)
    assert "has been stalled" in line
    assert "hang_here (test_watchdog.py:" in line
    assert "hang_here" in watched.note.read_text()
    time.sleep(10 * PERIOD)
    assert len(watched.said) == 1
    released.set()
    assert "continues after" in watched.wait(2)[1]
    assert watched.note.read_text() == ""
    assert watched.dog.info()["stalls"] == 1
    assert "hang_here" in watched.dog.info()["last-stall"]
    assert watched.dog.info()["longest-turn"] > 3 * PERIOD


def test_a_loop_that_waits_or_turns_is_left_alone(watched: Watched) -> None:
    watched.loop.post(lambda: watched.loop.every(PERIOD / 4, lambda: None))
    time.sleep(10 * PERIOD)
    assert watched.said == []


def test_a_watchdog_that_never_started_can_be_stopped() -> None:
    loop = Loop()
    Watchdog(loop).stop()
    loop.close()
