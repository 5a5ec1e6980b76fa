"""The partition's reference time: a counter of 100 ns since the start, and the TSC page to compute it from.

Source: TLFS 12.6 and 12.7. A guest that has the TSC page reads its clock without an exit:

    time = ((rdtsc * scale) >> 64) + offset
"""

from __future__ import annotations

import time
from collections.abc import Callable

from pyvmm.hyperv.tlfs import ReferenceTscPage

TICKS_PER_SECOND = 10_000_000
FOLLOW_PERIOD = 100_000_000
"""Nanoseconds in which the host's clock and the TSC drift apart by 50 microseconds at most."""

APIC_HZ = 1_000_000_000
"""KVM's LAPIC timer counts nanoseconds (APIC_BUS_CYCLE_NS)."""


def tsc_scale(tsc_hz: int) -> int:
    """The page's scale: 100 ns ticks a TSC tick, as a fraction of 2**64."""
    return (TICKS_PER_SECOND << 64) // tsc_hz


class ReferenceClock:
    """The reference counter of one partition."""

    def __init__(self, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._now_ns = now_ns
        self._start = now_ns()
        self._sequence = 0
        self._scale = self._offset = 0  # of the newest page
        self._followed = 0  # nanoseconds: when the count was that of the newest page

    def ticks(self) -> int:
        """100 ns units since the partition started (or was reset)."""
        return (self._now_ns() - self._start) // 100 % (1 << 64)

    def ns_at(self, ticks: int) -> int:
        """Return when the counter reads `ticks`, in nanoseconds of the clock that it counts."""
        return self._start + ticks * 100

    def restart(self) -> None:
        """Count from 0 again."""
        self._start = self._now_ns()

    def shift(self, nanoseconds: int) -> None:
        """Count as if the clock behind it had stood still for so long."""
        self._start += nanoseconds
        self._followed += nanoseconds

    @property
    def may_stray(self) -> bool:
        """Whether `follow` was not called for so long that a guest could tell."""
        return self._now_ns() - self._followed > FOLLOW_PERIOD

    def follow(self, tsc: int) -> None:
        """Set the counter to what the newest page gives for `tsc`, the guest's TSC now.

        NTP slews the host's clock by up to 0.5 ms a second, and timers count from what the guest computes.
        """
        self._followed = self._now_ns()
        self._start = self._followed - self.ticks_at(tsc) * 100

    def page(self, tsc: int, tsc_hz: int) -> bytes:
        """Build a reference TSC page for now, when the guest's TSC reads `tsc`. Each has a new sequence number."""
        self._sequence = self._sequence % 0xFFFFFFFE + 1  # 0 means "do not use", all ones "use the counter MSR"
        scale = tsc_scale(tsc_hz)
        offset = self.ticks() - (tsc * scale >> 64)
        self._scale, self._offset = scale, offset
        self._followed = self._now_ns()
        return ReferenceTscPage(self._sequence, 0, scale, offset % (1 << 64)).build()

    def ticks_at(self, tsc: int) -> int:
        """The count that the newest page gives for `tsc`. It lies between two that the guest computes before and
        after; `ticks`, from the host's clock, differs by what passed while the page was made.
        """
        return ((tsc * self._scale >> 64) + self._offset) % (1 << 64)
