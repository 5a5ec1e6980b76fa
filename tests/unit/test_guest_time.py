"""Guest time: clock and timers stand still while the guest cannot run."""

from __future__ import annotations

import pytest

from pyvmm.guest_time import STALL, GuestTimers
from tests.support.fake_clock import FakeLoop


@pytest.fixture
def loop() -> FakeLoop:
    return FakeLoop()


@pytest.fixture
def called() -> list[str]:
    return []


def test_a_timer_fires_on_time_while_the_guest_runs(loop: FakeLoop, called: list[str]) -> None:
    timers = GuestTimers(loop)
    timers.after(2.0, lambda: called.append("once"))
    timers.every(1.0, lambda: called.append("each"))
    loop.advance(0.9)
    assert called == []
    loop.advance(2.2)
    assert called == ["each", "once", "each", "each"]


def test_a_pause_counts_for_no_timer(loop: FakeLoop, called: list[str]) -> None:
    timers = GuestTimers(loop)
    timers.after(30.0, lambda: called.append("late"))
    loop.advance(10)
    timers.freeze()
    before = timers.clock()
    loop.advance(3600)
    assert timers.clock() == before and timers.frozen and called == []
    timers.thaw()
    loop.advance(19.9)
    assert called == []
    loop.advance(0.2)
    assert called == ["late"]


def test_a_timer_made_during_a_pause_begins_after_it(loop: FakeLoop, called: list[str]) -> None:
    timers = GuestTimers(loop)
    timers.freeze()
    timers.after(1.0, lambda: called.append("late"))
    loop.advance(60)
    timers.thaw()
    assert called == []
    loop.advance(1.0)
    assert called == ["late"]


def test_nothing_is_due_before_the_guest_has_run(loop: FakeLoop, called: list[str]) -> None:
    timers = GuestTimers(loop, frozen=True)
    timers.after(1.0, lambda: called.append("late"))
    loop.advance(100)
    assert called == []
    timers.thaw()
    loop.advance(1.1)
    assert called == ["late"]


def test_freezing_and_thawing_twice_is_once(loop: FakeLoop) -> None:
    timers = GuestTimers(loop)
    loop.advance(1)
    timers.freeze()
    loop.advance(1)
    timers.freeze()
    loop.advance(1)
    timers.thaw()
    timers.thaw()
    loop.advance(1)
    assert timers.clock() == 1002.0


def test_several_reasons_hold_until_the_last_is_gone(loop: FakeLoop) -> None:
    timers = GuestTimers(loop)
    timers.freeze()
    timers.freeze("output")
    loop.advance(1)
    timers.thaw()
    loop.advance(1)
    assert timers.frozen and timers.clock() == 1000.0
    timers.thaw("output")
    loop.advance(1)
    assert timers.clock() == 1001.0


def test_a_process_that_was_stopped_is_found_out(loop: FakeLoop, called: list[str]) -> None:
    timers = GuestTimers(loop, on_stall=lambda: called.append("stall"))
    timers.after(30.0, lambda: called.append("late"))
    loop.advance(10)
    loop.now += 600  # SIGSTOP, SIGCONT: all timers are due at once, in any order
    loop.advance(0)
    assert called == ["stall"]
    assert timers.clock() == pytest.approx(1010, abs=0.6)
    loop.advance(19.4)
    assert called == ["stall"]
    loop.advance(1.2)
    assert called == ["stall", "late"]


def test_a_stop_of_the_process_during_a_pause_is_part_of_the_pause(loop: FakeLoop, called: list[str]) -> None:
    timers = GuestTimers(loop, on_stall=lambda: called.append("stall"))
    timers.freeze()
    loop.now += 600
    loop.advance(1)
    timers.thaw()
    assert (timers.clock(), called) == (1000.0, [])


def test_a_loop_that_is_busy_for_a_moment_is_no_stop(loop: FakeLoop, called: list[str]) -> None:
    timers = GuestTimers(loop, on_stall=lambda: called.append("stall"))
    loop.advance(1)
    loop.now += STALL - 1
    loop.advance(1)
    assert timers.clock() == loop.now and called == []


def test_cancelled_timers_and_closed_time_call_nothing(loop: FakeLoop, called: list[str]) -> None:
    timers = GuestTimers(loop)
    timers.after(1.0, lambda: called.append("cancelled")).cancel()
    timers.after(1.0, lambda: called.append("closed"))
    timers.close()
    loop.advance(100)
    assert called == []
    assert loop.next_due() is None


@pytest.mark.parametrize("pause", [0.1, 1 / 3, 12345.678])
def test_uneven_pauses_neither_lose_nor_repeat_a_timer(loop: FakeLoop, called: list[str], pause: float) -> None:
    timers = GuestTimers(loop)
    timers.every(0.1, lambda: called.append("each"))
    for _ in range(10):
        loop.advance(0.1)
        timers.freeze()
        loop.advance(pause)
        timers.thaw()
    loop.advance(0.05)
    assert len(called) == 10
