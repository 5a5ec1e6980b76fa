"""The CMOS clock (RTC): an MC146818 behind an index port (0x70) and a data port (0x71), and its battery-backed bytes.

Source: Motorola MC146818A data sheet; the century byte at 0x32 is what the FADT names; Linux
drivers/rtc/rtc-mc146818-lib.c for what reads it.

Linux reads the time of day here at boot and in the rtc_cmos driver. Without a device at these ports it reads 0xff,
waits for an update that never ends, and loses seconds. Its interrupts: `rtc.interrupts`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from pyvmm.devices.rtc.interrupts import ALL, UPDATED, Alarm, RtcInterrupts, Scheduler

INDEX, DATA = 0, 1

SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY = 0, 2, 4, 6, 7, 8, 9, 0x32
ALARM_SECONDS, ALARM_MINUTES, ALARM_HOURS = 1, 3, 5
ALARM_ANY = 0xC0  # both bits set in an alarm register: every hour, minute or second
REG_A, REG_B, REG_C, REG_D = 0x0A, 0x0B, 0x0C, 0x0D
A_UPDATE_IN_PROGRESS = 0x80
A_DIVIDER_32KHZ, A_RATE_1024HZ, A_RATE = 0x20, 0x06, 0x0F
B_SET, B_BINARY, B_24_HOURS = 0x80, 0x04, 0x02
D_VALID = 0x80
HOUR_PM = 0x80
UPDATE_SECONDS = 0.002228
"""Seconds before each update with the update bit set: a reader that saw it clear has that long for all fields."""

_TIME = (SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY)
_YEAR_LIMIT = 10_000  # four digits of BCD: after 9999 comes 0000
_CYCLE_YEARS = 400  # after so many years dates and weekdays are the same again
_CYCLE = 146_097 * 86_400  # seconds
_MILLENNIUM = datetime(2000, 1, 1, tzinfo=UTC)
_YEAR_0 = int(_MILLENNIUM.timestamp()) - 2000 // _CYCLE_YEARS * _CYCLE
"""Seconds since 1970 at the start of year 0. The guest may set any year from there to 9999 and let the clock run on;
`datetime` ends at 9999, so it is given the same date in the years from 2000 to 2399."""


class Rtc:
    """The clock, in UTC. `clock()` returns seconds since 1970; the guest's setting is kept as an offset to it.
    `irq(level)` drives its line.
    """

    def __init__(self, irq: Callable[[bool], None], loop: Scheduler, clock: Callable[[], float] = time.time) -> None:
        self.lock = threading.RLock()
        self._clock = clock
        self._offset = 0.0
        self._cells = bytearray(128)
        self._frozen: dict[int, int] | None = None
        self._interrupts = RtcInterrupts(irq, loop, lambda: self._now() if self._frozen is None else None, self.lock)
        self.reset()

    def reset(self) -> None:
        """Handle a machine reset: time and cells are kept, as by the battery; an unfinished setting is dropped."""
        with self.lock:
            self._index = REG_D
            self._frozen = None
            self._cells[REG_A] = A_DIVIDER_32KHZ | A_RATE_1024HZ
            self._cells[REG_B] = B_24_HOURS
            self._update_settings()
            self._interrupts.reset()

    def read(self, offset: int, size: int) -> int:
        """Read the data port; the index port cannot be read."""
        if offset != DATA:
            return 0xFF
        index = self._index
        if index in _TIME:
            return self._encode(index, (self._frozen or self._fields())[index])
        match index:
            case 0x0A:
                now = self._now()
                updating = self._frozen is None and now - now // 1 >= 1 - UPDATE_SECONDS
                return self._cells[REG_A] | (A_UPDATE_IN_PROGRESS if updating else 0)
            case 0x0C:
                return self._interrupts.read_and_clear()
            case 0x0D:
                return D_VALID
        return self._cells[index]

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the index (its top bit, the NMI mask, is ignored) or the data."""
        value &= 0xFF
        if offset == INDEX:
            self._index = value & 0x7F
        elif offset == DATA and self._index not in (REG_C, REG_D):
            self._interrupts.update_flags()
            self._store(self._index, value)
            self._update_settings()
            self._interrupts.reschedule()

    def _store(self, index: int, value: int) -> None:
        if index in _TIME:
            fields = dict(self._fields()) if self._frozen is None else self._frozen
            fields[index] = self._decode(index, value)
            if self._frozen is None:
                self._set(fields)
        elif index == REG_B:
            if value & B_SET:
                value &= ~UPDATED
                if self._frozen is None:
                    self._frozen = dict(self._fields())
            elif self._frozen is not None:
                fields, self._frozen = self._frozen, None
                self._set(fields)
            self._cells[REG_B] = value
        elif index == REG_A:
            self._cells[REG_A] = value & ~A_UPDATE_IN_PROGRESS
        else:
            self._cells[index] = value

    def _update_settings(self) -> None:
        """Update the interrupts' settings from the registers."""
        interrupts, cells = self._interrupts, self._cells
        rate = cells[REG_A] & A_RATE  # 3 is 8192 Hz and 15 is 2 Hz; 1 and 2 equal 8 and 9
        interrupts.enabled = cells[REG_B] & ALL
        interrupts.period = 2.0 ** ((rate if rate > 2 else rate + 7) - 16) if rate else 0.0
        interrupts.alarm = Alarm(
            *(
                None if cells[index] & ALARM_ANY == ALARM_ANY else self._decode(time, cells[index])
                for index, time in ((ALARM_HOURS, HOURS), (ALARM_MINUTES, MINUTES), (ALARM_SECONDS, SECONDS))
            )
        )

    def _now(self) -> float:
        return self._clock() + self._offset

    def _fields(self) -> dict[int, int]:
        """Return the time by register. The result is shared with other readers: copy it to change it."""
        return _registers(int(self._now()))

    def _set(self, fields: dict[int, int]) -> None:
        """Set the clock to `fields`. An invalid date changes nothing."""
        year = fields[CENTURY] * 100 + fields[YEAR]
        if year >= _YEAR_LIMIT:
            return
        cycles, years = divmod(year, _CYCLE_YEARS)
        day, time = (fields[MONTH], fields[DAY]), (fields[HOURS], fields[MINUTES], fields[SECONDS])
        try:
            date = datetime(_MILLENNIUM.year + years, *day, *time, tzinfo=UTC)
        except ValueError:
            return
        now = self._now()
        self._offset += (date - _MILLENNIUM).total_seconds() + _YEAR_0 + cycles * _CYCLE - (now - now % 1)
        self._interrupts.time_set()

    def _encode(self, index: int, value: int) -> int:
        flag = 0
        if index == HOURS and not self._cells[REG_B] & B_24_HOURS:
            flag = HOUR_PM if value >= 12 else 0
            value = (value + 11) % 12 + 1
        if not self._cells[REG_B] & B_BINARY:
            value = value // 10 << 4 | value % 10
        return (value | flag) & 0xFF  # a clock that is being set returns the written value, valid or not

    def _decode(self, index: int, value: int) -> int:
        twelve = index == HOURS and not self._cells[REG_B] & B_24_HOURS
        afternoon = twelve and value & HOUR_PM
        if twelve:
            value &= ~HOUR_PM
        if not self._cells[REG_B] & B_BINARY:
            value = (value >> 4) * 10 + (value & 0xF)
        if twelve:
            value = value % 12 + (12 if afternoon else 0)
        return value


@lru_cache(maxsize=1)
def _registers(second: int) -> dict[int, int]:
    """Return a time by register. Cached during the second: readers read all registers, some twice."""
    cycles, rest = divmod(second - _YEAR_0, _CYCLE)
    now = _MILLENNIUM + timedelta(seconds=rest)
    year = (cycles * _CYCLE_YEARS + now.year - _MILLENNIUM.year) % _YEAR_LIMIT
    return {
        SECONDS: now.second,
        MINUTES: now.minute,
        HOURS: now.hour,
        WEEKDAY: now.isoweekday() % 7 + 1,  # Sunday is 1
        DAY: now.day,
        MONTH: now.month,
        YEAR: year % 100,
        CENTURY: year // 100,
    }
