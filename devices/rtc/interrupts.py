"""The CMOS clock's interrupts: alarm, update (each new second), periodic.

    the second changes --> UF    it is the alarm's --> AF    a period has passed --> PF     flags of register C
    a flag that register B enables is set --> line 8 up --> the guest reads C --> no flags, line down

Flags are set whether enabled or not, so they are updated lazily for the time since the last update: when the guest
reads C, or by a timer, which runs only while an interrupt is enabled and the line is down. A guest that is slow to
read C loses ticks, as on a busy PC.

Source: Motorola MC146818A data sheet, "Interrupts"; Linux drivers/rtc/rtc-cmos.c, cmos_interrupt, for the driver.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pyvmm.contain import contained

if TYPE_CHECKING:
    from pyvmm.loop import Timer

UPDATED, ALARM, PERIODIC = 0x10, 0x20, 0x40
"""Bits of registers B (enabled) and C (happened)."""
ALL = UPDATED | ALARM | PERIODIC
C_INTERRUPT = 0x80
_SLACK = 0.0005
"""Seconds by which a timer may fire early: two clocks always differ slightly."""


class Scheduler(Protocol):
    """The part of pyvmm.loop.Loop that the clock uses."""

    def after(self, seconds: float, callback: Callable[[], object], /) -> Timer: ...

    def post(self, callback: Callable[[], object], /) -> None: ...


class Alarm(NamedTuple):
    """The time of day at which the alarm fires; None for any hour, minute or second."""

    hour: int | None
    minute: int | None
    second: int | None

    def next_after(self, time: int) -> int | None:
        """Return the alarm's next time after `time` (seconds since some midnight); None for an invalid alarm."""
        hour, minute, second = self
        if (hour or 0) > 23 or (minute or 0) > 59 or (second or 0) > 59:
            return None
        time += 1
        while True:  # a day's hours, an hour's minutes, a minute's seconds at most, and once more for the next day
            if hour is not None and time // 3600 % 24 != hour:
                time = (time // 3600 + 1) * 3600
            elif minute is not None and time // 60 % 60 != minute:
                time = (time // 60 + 1) * 60
            elif second is not None and time % 60 != second:
                time += 1
            else:
                return time


class RtcInterrupts:
    """Interrupt flags, line and timer. `now()` is the clock's time in seconds, None while it is stopped to be set.

    All methods need the clock's lock; `irq(level)` is called with it held, on a vCPU's thread or the loop's.
    """

    def __init__(
        self, irq: Callable[[bool], None], loop: Scheduler, now: Callable[[], float | None], lock: threading.RLock
    ) -> None:
        self.enabled = 0
        self.alarm = Alarm(0, 0, 0)
        self.period = 0.0  # seconds, 0 for none
        self._flags = 0
        self._line_is_up = False
        self._irq = irq
        self._loop = loop
        self._now = now
        self._lock = lock
        self._last = now()
        self._timer: Timer | None = None
        self._posted = False  # an update is posted to the loop; one at a time, however often the guest makes changes

    def update_flags(self) -> None:
        """Set the flags for events since the last call. To be called before any change of the events' settings."""
        last, self._last = self._last, self._now()
        now = self._last
        if now is not None and last is not None and now > last:
            if now // 1 > last // 1:
                self._flags |= UPDATED
                ring = self.alarm.next_after(int(last // 1))
                if ring is not None and ring <= now:
                    self._flags |= ALARM
            if self.period and now // self.period > last // self.period:
                self._flags |= PERIODIC
        self._update_line()

    def time_set(self) -> None:
        """Handle a newly set time: events between the old and the new time are skipped."""
        self._last = self._now()

    def read_and_clear(self) -> int:
        """Return register C and clear it, as the guest's read does."""
        self.update_flags()
        flags, self._flags = self._flags, 0
        pending = C_INTERRUPT if self._line_is_up else 0
        if pending:
            self.reschedule()
        return flags | pending

    def reschedule(self) -> None:
        """Update the line and reschedule the timer after a change, on the loop."""
        self._update_line()
        if not self._posted and (self.enabled or self._timer is not None):
            self._posted = True
            self._loop.post(self._tick)

    def reset(self) -> None:
        """Disable all interrupts and clear the pending ones."""
        self.enabled = self._flags = 0
        self.reschedule()

    @contained("CMOS clock")
    def _tick(self) -> None:
        """Update the flags and reschedule the timer."""
        with self._lock:
            self._posted = False
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self.update_flags()
            due = self._next()
            if due is not None and not self._line_is_up:
                self._timer = self._loop.after(due + _SLACK, self._tick)

    def _next(self) -> float | None:
        """Return the seconds until the next enabled event."""
        now = self._last
        if now is None:
            return None
        moments: list[float] = []
        if self.enabled & UPDATED:
            moments.append(now // 1 + 1)
        if self.enabled & ALARM and (ring := self.alarm.next_after(int(now // 1))) is not None:
            moments.append(ring)
        if self.enabled & PERIODIC and self.period:
            moments.append((now // self.period + 1) * self.period)
        return min(moments) - now if moments else None

    def _update_line(self) -> None:
        up = bool(self._flags & self.enabled)
        if up != self._line_is_up:
            self._line_is_up = up
            self._irq(up)
