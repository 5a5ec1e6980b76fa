"""The loop's precise alarm, with a real loop and the kernel's timers."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from pyvmm.alarm import Alarm
from pyvmm.loop import Loop

LIMIT = 10.0


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def rings(loop: Loop, rung: list[int], count: int) -> None:
    limit = time.monotonic() + LIMIT
    while len(rung) < count and time.monotonic() < limit:
        loop.step(0.5)
    assert len(rung) == count


def test_it_rings_once_and_not_before_its_time(loop: Loop) -> None:
    rung: list[int] = []
    alarm = Alarm(loop, lambda: rung.append(time.monotonic_ns()))
    when = time.monotonic_ns() + 3_000_000
    alarm.set(when)
    rings(loop, rung, 1)
    assert rung[0] >= when
    loop.step(0.01)
    assert len(rung) == 1
    alarm.close()


def test_a_time_in_the_past_rings_at_once_and_the_last_one_set_counts(loop: Loop) -> None:
    rung: list[int] = []
    alarm = Alarm(loop, lambda: rung.append(1))
    alarm.set(1 << 70)  # later than the kernel counts
    loop.step(0.001)
    assert not rung
    alarm.set(0)
    rings(loop, rung, 1)
    alarm.set(-5)
    alarm.set(None)
    loop.step(0.01)
    assert len(rung) == 1
    alarm.close()
    alarm.close()
    alarm.set(0)  # a vCPU that was in the middle of it


def test_an_alarm_is_used_again_after_it_was_closed(loop: Loop) -> None:
    rang: list[int] = []
    alarm = Alarm(loop, lambda: rang.append(1))
    alarm.set(1)
    alarm.close()
    alarm.set(1)
    alarm.open()
    loop.step(0)
    assert not rang, "what was set before is gone"
    alarm.set(1)
    loop.step(1)
    assert rang
    alarm.close()
