"""Automatic sizing, like Hyper-V's Dynamic Memory: computes balloon targets from pressure reports. No I/O.

Source: Linux drivers/hv/hv_balloon.c, post_status(), for the reports; the rules are ours.

A guest's *demand* is its committed memory or its memory in use, whichever is more. Its wanted size is the demand plus
a buffer, within its limits:

    0        demand      wanted = demand * (1 + buffer)
    |===========|--buffer--|                        pressure = demand / current, in percent
    |===========|=====================|  current    above wanted: shrinks after a delay, in steps
    |=======|  current                              below wanted: grows at once, to the wanted size

           wanted above current
    Steady ---------------------> Resizing(goal) --finished--> Settling(until) --time--> Steady
      |  ^                             ^
      |  | wanted near current         |
      v  |                             |
    Surplus(since, peak) --lasted------+        one step down, not below the peak of the wanted size meanwhile

During a resize the guest's report and the host's counts can disagree (one side has counted a piece that the other has
not), so reports are evaluated only while the balloon is at rest, and the first ones after a resize are ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of automatic sizing in bytes; `buffer` in percent of the demand."""

    minimum: int
    maximum: int
    buffer: int = 20

    def clamp(self, size: int) -> int:
        return max(self.minimum, min(size, self.maximum))


@dataclass(frozen=True, slots=True)
class Report:
    """A status report and the host's counts at that moment. `time` in seconds, of any clock; sizes in bytes."""

    time: float
    available: int
    committed: int  # Linux counts pages out in the balloon too
    current: int  # the guest's size
    out: int = 0  # in the balloon

    @property
    def demand(self) -> int:
        """The memory that the guest needs: its committed memory, or its memory in use that cannot be dropped."""
        return max(self.committed - self.out, self.current - self.available, 0)

    @property
    def pressure(self) -> int:
        """Demand in percent of the guest's current size."""
        return 100 * self.demand // max(self.current, 1)


@dataclass(frozen=True, slots=True)
class Decision:
    """A target for the balloon. `limited`: the wanted size exceeds the guest's maximum."""

    target: int
    reason: Literal["grow", "shrink"]
    demand: int
    pressure: int
    limited: bool = False


@dataclass(frozen=True, slots=True)
class SizingParameters:
    """Thresholds and delays of automatic sizing. Times in seconds, parts in percent."""

    band: int = 3  # of the current size; smaller differences are left alone
    band_minimum: int = 16 * MIB
    surplus_band: int = 10  # of the current size: the least surplus that makes the guest shrink
    shrink_after: float = 30.0  # how long a surplus must last before the guest shrinks
    shrink_step: int = 25  # of the current size, at most
    settle: float = 2.5  # after a resize: two reports
    retry_after: float = 60.0  # after an incomplete resize, in that direction; doubles up to 16 times
    give_up: float = 180.0  # timeout of a resize whose end is not reported
    unit: int = MIB


@dataclass(slots=True)
class Steady:
    """The guest's size is within the band around the wanted size."""

    NAME: ClassVar[str] = "steady"


@dataclass(slots=True)
class Surplus:
    """The guest has exceeded the wanted size since `since`; `peak` is the largest wanted size in this time."""

    NAME: ClassVar[str] = "surplus"
    since: float
    peak: int


@dataclass(slots=True)
class Resizing:
    """A target is set and not reached yet."""

    NAME: ClassVar[str] = "resizing"
    goal: int
    reason: Literal["grow", "shrink"]
    since: float


@dataclass(slots=True)
class Settling:
    """A resize has ended; reports may still describe the time before it, and are ignored."""

    NAME: ClassVar[str] = "settling"
    until: float


State = Steady | Surplus | Resizing | Settling


def wanted(demand: int, limits: Limits, unit: int = MIB) -> int:
    """Return the wanted size for this demand: whole units, within the limits."""
    raw = demand + demand * limits.buffer // 100
    return limits.clamp(-(-raw // unit) * unit)


class AutoSizer:
    """Sizes one guest. Call `report` with each status report, `finished` when the balloon has ended an attempt, and
    `reset` when the guest has restarted.
    """

    def __init__(self, limits: Limits, parameters: SizingParameters | None = None) -> None:
        self.limits = limits
        self.parameters = parameters or SizingParameters()
        self.state: State = Steady()
        self._blocked_until = {"grow": 0.0, "shrink": 0.0}
        self._failures = {"grow": 0, "shrink": 0}

    def report(self, report: Report) -> Decision | None:
        """Return the target to set now, if any."""
        now = report.time
        match self.state:
            case Resizing(since=since) if now < since + self.parameters.give_up:
                return None
            case Settling(until=until) if now < until:
                return None
        if isinstance(self.state, Resizing | Settling):
            self.state = Steady()
        current = report.current
        goal = wanted(report.demand, self.limits, self.parameters.unit)
        band = max(self.parameters.band_minimum, current * self.parameters.band // 100)
        # Up to the maximum even a step smaller than the band is made: no later, larger step is possible.
        if goal >= current + band or current < goal == self.limits.maximum:
            return self._grow(report, goal)
        if current - goal < max(band, current * self.parameters.surplus_band // 100):
            self.state = Steady()
            return None
        if not isinstance(self.state, Surplus):
            self.state = Surplus(now, goal)
        self.state.peak = max(self.state.peak, goal)
        if now < self.state.since + self.parameters.shrink_after or now < self._blocked_until["shrink"]:
            return None
        return self._shrink(report, self.state.peak)

    def _grow(self, report: Report, goal: int) -> Decision | None:
        if report.time < self._blocked_until["grow"]:
            self.state = Steady()
            return None
        self.state = Resizing(goal, "grow", report.time)
        limited = report.demand + report.demand * self.limits.buffer // 100 > goal
        return Decision(goal, "grow", report.demand, report.pressure, limited)

    def _shrink(self, report: Report, peak: int) -> Decision:
        unit = self.parameters.unit
        step = max(unit, report.current * self.parameters.shrink_step // 100)
        goal = self.limits.clamp(max(peak, -(-(report.current - step) // unit) * unit))
        self.state = Resizing(goal, "shrink", report.time)
        return Decision(goal, "shrink", report.demand, report.pressure)

    def finished(self, now: float, *, reached: bool) -> None:
        """Handle the end of a balloon's resize attempt, whatever started it."""
        if isinstance(self.state, Resizing):
            reason = self.state.reason
            failures = 0 if reached else self._failures[reason] + 1
            self._failures[reason] = failures
            if failures:
                self._blocked_until[reason] = now + self.parameters.retry_after * 2 ** min(failures - 1, 4)
        self.state = Settling(now + self.parameters.settle)

    def reset(self) -> None:
        """Forget state and failed attempts: the guest has restarted."""
        self.state = Steady()
        self._blocked_until = {"grow": 0.0, "shrink": 0.0}
        self._failures = {"grow": 0, "shrink": 0}
