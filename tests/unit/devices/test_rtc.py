"""The CMOS clock."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from pyvmm.devices.rtc import clock as rtc
from pyvmm.devices.rtc.clock import Rtc
from tests.support.fake_clock import FakeLoop


class Clock:
    def __init__(self, *date: int) -> None:
        self.now = datetime(*date, tzinfo=UTC).timestamp()  # type: ignore[arg-type]

    def __call__(self) -> float:
        return self.now


def started(source: Clock) -> Rtc:
    """A clock whose line leads nowhere."""
    return Rtc(lambda level: None, FakeLoop(), source)


def get(clock: Rtc, index: int) -> int:
    clock.write(rtc.INDEX, 1, index)
    return clock.read(rtc.DATA, 1)


def put(clock: Rtc, index: int, value: int) -> None:
    clock.write(rtc.INDEX, 1, index)
    clock.write(rtc.DATA, 1, value)


FIELDS = (rtc.CENTURY, rtc.YEAR, rtc.MONTH, rtc.DAY, rtc.HOURS, rtc.MINUTES, rtc.SECONDS)


def shown(clock: Rtc) -> list[int]:
    return [get(clock, index) for index in FIELDS]


def test_shows_the_time_in_bcd_and_24_hours() -> None:
    clock = started(Clock(2031, 12, 9, 23, 45, 58))
    assert shown(clock) == [0x20, 0x31, 0x12, 0x09, 0x23, 0x45, 0x58]
    assert get(clock, rtc.WEEKDAY) == 3  # a Tuesday
    assert get(clock, rtc.REG_B) & rtc.B_24_HOURS
    assert get(clock, rtc.REG_D) == rtc.D_VALID
    assert get(clock, rtc.REG_C) == 0


@pytest.mark.parametrize(
    ("century", "year", "before", "after"),
    [
        (0x99, 0x99, [0x99, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59], [0, 0, 1, 1, 0, 0, 0]),
        (0x00, 0x00, [0, 0, 0x12, 0x31, 0x23, 0x59, 0x59], [0, 1, 1, 1, 0, 0, 0]),
        (0x00, 0x01, [0, 1, 0x12, 0x31, 0x23, 0x59, 0x59], [0, 2, 1, 1, 0, 0, 0]),
        (0x20, 0x99, [0x20, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59], [0x21, 0, 1, 1, 0, 0, 0]),
    ],
)
def test_any_year_can_be_set_and_the_clock_goes_on_from_it(
    century: int, year: int, before: list[int], after: list[int]
) -> None:
    source = Clock(2031, 12, 9, 23, 45, 58)
    clock = started(source)
    for index, value in zip(FIELDS, [century, year, 0x12, 0x31, 0x23, 0x59, 0x59], strict=True):
        put(clock, index, value)
    assert shown(clock) == before
    source.now += 1
    assert shown(clock) == after
    source.now -= 2
    assert shown(clock) == [*before[:-1], 0x58]


@pytest.mark.parametrize("how", [0, rtc.B_BINARY, rtc.B_SET, rtc.B_SET | rtc.B_BINARY])
@pytest.mark.parametrize("value", [0x00, 0x13, 0x30, 0x60, 0x9A, 0xA0, 0xFF])
def test_numbers_that_are_no_time_leave_a_clock_that_can_be_read(how: int, value: int) -> None:
    clock = started(Clock(2031, 2, 28, 23, 45, 58))
    put(clock, rtc.REG_B, how)
    for index in (*FIELDS, rtc.WEEKDAY, rtc.ALARM_HOURS, rtc.ALARM_MINUTES, rtc.ALARM_SECONDS):
        put(clock, index, value)
    assert all(0 <= each <= 0xFF for each in shown(clock))
    put(clock, rtc.REG_B, rtc.B_24_HOURS)
    assert all(0 <= each <= 0xFF for each in shown(clock))


def test_binary_mode_shows_plain_numbers() -> None:
    clock = started(Clock(2031, 12, 9, 23, 45, 58))
    put(clock, rtc.REG_B, rtc.B_24_HOURS | rtc.B_BINARY)
    assert shown(clock) == [20, 31, 12, 9, 23, 45, 58]


@pytest.mark.parametrize(("hour", "coded"), [(0, 0x12), (1, 0x01), (11, 0x11), (12, 0x92), (13, 0x81), (23, 0x91)])
def test_12_hour_mode_has_an_afternoon_bit(hour: int, coded: int) -> None:
    clock = started(Clock(2031, 1, 1, hour))
    put(clock, rtc.REG_B, 0)
    assert get(clock, rtc.HOURS) == coded
    put(clock, rtc.HOURS, coded)
    assert get(clock, rtc.HOURS) == coded


def test_the_update_bit_warns_before_the_second_changes() -> None:
    source = Clock(2031, 1, 1)
    clock = started(source)
    assert not get(clock, rtc.REG_A) & rtc.A_UPDATE_IN_PROGRESS
    source.now += 0.999
    assert get(clock, rtc.REG_A) & rtc.A_UPDATE_IN_PROGRESS
    source.now += 0.002
    assert not get(clock, rtc.REG_A) & rtc.A_UPDATE_IN_PROGRESS


def test_the_guest_sets_the_time_and_it_runs_on() -> None:
    source = Clock(2031, 1, 1)
    clock = started(source)
    put(clock, rtc.REG_B, rtc.B_SET | rtc.B_24_HOURS)
    for index, value in zip(FIELDS, (0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59), strict=True):
        put(clock, index, value)
    source.now += 5
    assert get(clock, rtc.SECONDS) == 0x59, "stopped while being set"
    put(clock, rtc.REG_B, rtc.B_24_HOURS)
    source.now += 2
    assert shown(clock) == [0x20, 0x00, 0x01, 0x01, 0x00, 0x00, 0x01]


def test_a_date_that_does_not_exist_is_not_taken() -> None:
    clock = started(Clock(2031, 2, 3))
    put(clock, rtc.MONTH, 0xFF)
    put(clock, rtc.DAY, 0x30)
    assert shown(clock)[:4] == [0x20, 0x31, 0x02, 0x03]


def test_other_cells_are_plain_memory_that_outlives_a_reset() -> None:
    clock = started(Clock(2031, 2, 3))
    put(clock, 0x0F, 0x0A)
    clock.reset()
    assert get(clock, 0x0F) == 0x0A
