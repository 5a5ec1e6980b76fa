"""A clock that stands still while it is stopped, and goes on from there."""

from __future__ import annotations

import time

import pytest

from pyvmm.stoppable_clock import StoppableClock


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The host's clock, to be set."""
    time_now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: time_now[0])
    return time_now


def test_it_is_the_hosts_clock_until_it_is_stopped(now: list[float]) -> None:
    clock = StoppableClock()
    now[0] = 107.5
    assert (clock(), clock.stopped, clock.start()) == (107.5, False, 0.0)


def test_it_goes_on_from_where_it_stopped(now: list[float]) -> None:
    clock = StoppableClock()
    for _ in range(2):
        before = clock()
        clock.stop()
        now[0] += 42
        clock.stop()
        assert (clock(), clock.stopped) == (before, True)
        assert clock.start() == 42
        now[0] += 10
        assert clock() == before + 10


def test_it_tells_past_moments_those_of_standing_still_too(now: list[float]) -> None:
    clock = StoppableClock()
    for _ in range(2):
        now[0] += 10
        clock.stop()
        now[0] += 40
        clock.start()
    now[0] += 5  # 100 to 110, stopped to 150, to 160, stopped to 200, to 205
    assert [clock.at(moment) for moment in (100, 109, 130, 151, 160, 199, 200, 205)] == [
        100, 109, 110, 111, 120, 120, 120, 125,
    ]  # fmt: skip
