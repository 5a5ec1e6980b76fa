"""The CMOS clock's interrupts: when the line goes up, what register C says, and that no timer runs without need."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from pyvmm.devices.rtc import clock as rtc
from pyvmm.devices.rtc.clock import B_24_HOURS, B_BINARY, B_SET, Rtc
from pyvmm.devices.rtc.interrupts import ALARM, C_INTERRUPT, PERIODIC, UPDATED, Alarm
from tests.support.fake_clock import FakeLoop

NOON = 12 * 3600


class Watched:
    """A clock that began at 12:00:00.25 on a January 1st, its loop, and what its line did."""

    def __init__(self) -> None:
        self.loop = FakeLoop()
        begin = datetime(2031, 1, 1, 12, tzinfo=UTC).timestamp() + 0.25 - self.loop.now
        self.line: list[bool] = []
        self.jumped = 0.0
        self.rtc = Rtc(self.line.append, self.loop, lambda: begin + self.loop.now + self.jumped)

    def get(self, index: int) -> int:
        self.rtc.write(rtc.INDEX, 1, index)
        value = self.rtc.read(rtc.DATA, 1)
        self.loop.run()
        return value

    def put(self, index: int, value: int) -> None:
        self.rtc.write(rtc.INDEX, 1, index)
        self.rtc.write(rtc.DATA, 1, value)
        self.loop.run()

    def alarm(self, hour: int, minute: int, second: int) -> None:
        """As they stand in the registers."""
        for index, value in ((rtc.ALARM_HOURS, hour), (rtc.ALARM_MINUTES, minute), (rtc.ALARM_SECONDS, second)):
            self.put(index, value)


@pytest.fixture
def clock() -> Iterator[Watched]:
    watched = Watched()
    yield watched
    watched.rtc.reset()
    watched.loop.run()
    assert watched.loop.next_due() is None, "a reset ends the timer"


@pytest.mark.parametrize(
    ("alarm", "time", "expected"),
    [
        (Alarm(12, 0, 5), NOON, NOON + 5),
        (Alarm(12, 0, 0), NOON, NOON + 86400),
        (Alarm(11, 59, 59), NOON, NOON + 86399),
        (Alarm(None, None, None), NOON, NOON + 1),
        (Alarm(None, None, 0), NOON, NOON + 60),
        (Alarm(None, 30, 0), NOON + 1801, NOON + 5400),
        (Alarm(13, None, None), NOON, NOON + 3600),
        (Alarm(0, None, 59), NOON, 86400 + 59),
        (Alarm(23, 59, None), 86399, 86400 + 86340),
        (Alarm(24, 0, 0), NOON, None),
        (Alarm(0, 60, 0), NOON, None),
        (Alarm(None, None, 165), NOON, None),
    ],
)
def test_when_an_alarm_rings_next(alarm: Alarm, time: int, expected: int | None) -> None:
    assert alarm.next_after(time) == expected


def test_an_alarm_raises_the_line_until_register_c_is_read(clock: Watched) -> None:
    clock.alarm(0x12, 0x00, 0x03)
    clock.put(rtc.REG_B, B_24_HOURS | ALARM)
    clock.loop.advance(2.7)
    assert clock.line == []
    clock.loop.advance(0.1)
    assert clock.line == [True]
    assert clock.get(rtc.REG_C) == C_INTERRUPT | ALARM | UPDATED | PERIODIC
    assert clock.line == [True, False]
    assert clock.get(rtc.REG_C) == 0
    clock.loop.advance(3600)
    assert clock.line == [True, False]
    clock.loop.advance(86400 - 3600 + 1)
    assert clock.line == [True, False, True], "every day"


def test_an_alarm_is_understood_as_the_mode_has_it(clock: Watched) -> None:
    clock.put(rtc.REG_B, ALARM)  # 12 hours, BCD
    clock.alarm(0x81, 0x00, 0xFF)  # any second of 1:00 pm
    clock.loop.advance(3599)
    assert clock.line == []
    clock.loop.advance(1)
    assert clock.line == [True]
    clock.get(rtc.REG_C)
    clock.put(rtc.REG_B, B_24_HOURS | B_BINARY | ALARM)
    clock.alarm(13, 20, 0)
    clock.loop.advance(1199)
    assert clock.line == [True, False]
    clock.loop.advance(1)
    assert clock.line == [True, False, True]


def test_a_new_second_interrupts_if_wanted(clock: Watched) -> None:
    clock.put(rtc.REG_B, B_24_HOURS | UPDATED)
    for number in range(1, 4):
        clock.loop.advance(1)
        assert clock.line == [True, False] * (number - 1) + [True]
        assert clock.get(rtc.REG_C) == C_INTERRUPT | UPDATED | PERIODIC
    clock.put(rtc.REG_B, B_24_HOURS)
    assert clock.loop.next_due() is None


def test_the_line_follows_what_is_enabled_of_what_has_happened(clock: Watched) -> None:
    clock.loop.advance(1)
    clock.put(rtc.REG_B, B_24_HOURS | UPDATED)
    assert clock.line == [True], "it had happened"
    clock.put(rtc.REG_B, B_24_HOURS)
    assert clock.line == [True, False]
    assert clock.get(rtc.REG_C) == UPDATED | PERIODIC


def test_flags_are_there_for_who_polls_and_no_timer_runs(clock: Watched) -> None:
    assert clock.get(rtc.REG_C) == 0
    clock.loop.advance(1)
    assert clock.get(rtc.REG_C) == UPDATED | PERIODIC
    assert clock.loop.next_due() is None
    assert clock.line == []


@pytest.mark.parametrize(("rate", "expected"), [(0x0F, 2), (0x0E, 4), (0x02, 128), (0x01, 256), (0x00, 0)])
def test_the_periodic_tick_has_the_rate_of_register_a(clock: Watched, rate: int, expected: int) -> None:
    clock.put(rtc.REG_A, 0x20 | rate)
    clock.put(rtc.REG_B, B_24_HOURS | PERIODIC)
    ticks = 0
    for _ in range(2000):
        clock.loop.advance(0.001)
        if clock.line[-1:] == [True]:
            assert clock.get(rtc.REG_C) & (C_INTERRUPT | PERIODIC) == C_INTERRUPT | PERIODIC
            ticks += 1
    assert 2 * expected - 2 <= ticks <= 2 * expected


def test_a_tick_that_is_not_read_costs_one_timer(clock: Watched) -> None:
    clock.put(rtc.REG_A, 0x23)  # 8192 a second
    clock.put(rtc.REG_B, B_24_HOURS | PERIODIC)
    clock.loop.advance(10)
    assert clock.line == [True]
    assert clock.loop.next_due() is None


def test_a_guest_that_sets_it_without_end_leaves_one_thing_to_do(clock: Watched) -> None:
    for _ in range(1000):
        clock.rtc.write(rtc.INDEX, 1, rtc.REG_B)
        clock.rtc.write(rtc.DATA, 1, B_24_HOURS | ALARM)
    assert clock.loop.step()
    assert not clock.loop.step()
    clock.alarm(0x12, 0x00, 0x01)
    clock.loop.advance(1)
    assert clock.line == [True]


def test_while_it_is_set_nothing_happens_and_update_interrupts_are_off(clock: Watched) -> None:
    clock.alarm(0x12, 0x00, 0x01)
    clock.put(rtc.REG_B, B_24_HOURS | B_SET | ALARM | UPDATED)
    assert clock.get(rtc.REG_B) == B_24_HOURS | B_SET | ALARM
    clock.loop.advance(5)
    assert clock.line == []
    clock.put(rtc.MINUTES, 0x30)
    clock.put(rtc.REG_B, B_24_HOURS | ALARM)
    clock.loop.advance(5)
    assert clock.line == [], "a time that was jumped over is no alarm"
    clock.alarm(0x12, 0x30, 0x08)
    clock.loop.advance(4)
    assert clock.line == [True]


def test_a_host_s_clock_set_back_only_delays(clock: Watched) -> None:
    clock.alarm(0x12, 0x00, 0x10)
    clock.put(rtc.REG_B, B_24_HOURS | ALARM)
    clock.jumped = -5
    clock.loop.advance(10)
    assert clock.line == []
    clock.loop.advance(5)
    assert clock.line == [True]


def test_a_reset_lowers_the_line_and_forgets_what_was_enabled(clock: Watched) -> None:
    clock.put(rtc.REG_B, B_24_HOURS | UPDATED)
    clock.loop.advance(1)
    clock.rtc.reset()
    clock.loop.run()
    assert clock.line == [True, False]
    assert clock.get(rtc.REG_B) == B_24_HOURS
    clock.loop.advance(5)
    assert clock.line == [True, False]
