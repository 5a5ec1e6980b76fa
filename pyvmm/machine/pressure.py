"""Passes the guest's status reports on to the time series and to automatic sizing. On the loop's thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pyvmm import qapi
from pyvmm.errors import ConfigError
from pyvmm.machine import events as trace
from pyvmm.machine.autosize import AutoSizer, Decision, Limits, Report
from pyvmm.machine.history import PressureHistory, Sample
from pyvmm.memory import PAGE_SIZE
from pyvmm.qapi import Emit

if TYPE_CHECKING:
    from pyvmm.devices.balloon.device import BalloonDevice
    from pyvmm.devices.balloon.plan import ResizeOutcome


NO_AUTOSIZE = "this machine has no automatic sizing: start it with --memory SIZE,min=SIZE,max=SIZE,buffer=20%"


class Pressure:
    """Listens to a balloon. `limits` turn automatic sizing on; `emit` sends QMP events.

    X_AUTOSIZE reports each decision: target, reason (grow, shrink), demand, pressure in percent, limited.
    A target set manually suspends sizing until `set_automatic(True)`.
    """

    def __init__(
        self,
        balloon: BalloonDevice,
        limits: Limits | None,
        emit: Emit,
        *,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.history = PressureHistory()
        self.sizer = None if limits is None else AutoSizer(limits)
        self.automatic = limits is not None
        self._balloon = balloon
        self._emit = emit
        self._wall, self._clock = wall, clock
        self._last: Decision | None = None
        balloon.on_status.append(self._status)
        balloon.on_finish.append(self._finished)

    def set_automatic(self, on: bool) -> None:
        """Resume or suspend automatic sizing. Raises ConfigError if it was not configured at the start."""
        if self.sizer is None:
            if not on:
                return
            raise ConfigError(NO_AUTOSIZE)
        if on != self.automatic:
            self.automatic = on
            self.sizer.reset()
            if on:
                self._balloon.stop_retrying()
            if trace.autosize_held.on:
                trace.autosize_held("on" if on else "held")
            self._emit(qapi.X_AUTOSIZE_CHANGE({"enabled": on}))

    def reset(self) -> None:
        """Handle a machine reset. The history goes on; its times show the reset."""
        if self.sizer is not None:
            self.sizer.reset()

    def _status(self, available: int, committed: int) -> None:
        ledger = self._balloon.machine.ledger
        current, out = ledger.current_pages * PAGE_SIZE, ledger.removed_pages * PAGE_SIZE
        self.history.add(Sample(self._wall(), available, committed, current, out))
        if self.sizer is None or not self.automatic:
            return
        decision = self.sizer.report(Report(self._clock(), available, committed, current, out))
        if decision is not None:
            self._last = decision
            if trace.autosize.on:
                trace.autosize(decision.reason, current, decision.target, decision.demand, decision.pressure)
            self._emit(qapi.X_AUTOSIZE(_decision(decision)))
            self._balloon.set_target(decision.target, retry_in_background=False)  # the sizer has its own retries

    def _finished(self, outcome: ResizeOutcome) -> None:
        if self.sizer is not None:
            self.sizer.finished(self._clock(), reached=outcome.reached)

    def describe(self) -> qapi.AutosizeInfo | None:
        """Return the state of automatic sizing for the monitor; None if it is off."""
        if self.sizer is None:
            return None
        limits = self.sizer.limits
        return {
            "enabled": self.automatic,
            "state": self.sizer.state.NAME,
            "min": limits.minimum,
            "max": limits.maximum,
            "buffer": limits.buffer,
            "last": None if self._last is None else _decision(self._last),
        }

    def info(self, count: int, since: float | None) -> qapi.PressureInfo:
        """Return the reply to x-query-pressure."""
        last = self.history.last
        report = None
        if last is not None and self._balloon.last_status is not None:
            report = Report(last.time, last.available, last.committed, last.actual, last.out)
        samples = self.history.newest(count) if since is None else self.history.since(since)[-count:]
        ledger = self._balloon.machine.ledger
        return {
            "current": ledger.current_pages * PAGE_SIZE,
            "actual": ledger.actual_pages * PAGE_SIZE,
            "boot": ledger.boot_pages * PAGE_SIZE,
            "max": ledger.maximum_pages * PAGE_SIZE,
            "target": self._balloon.target,
            "demand": None if report is None else report.demand,
            "pressure": None if report is None else report.pressure,
            "autosize": self.describe(),
            "samples": [each.as_dict() for each in samples],
        }


def _decision(decision: Decision) -> qapi.Autosize:
    return {
        "target": decision.target,
        "reason": decision.reason,
        "demand": decision.demand,
        "pressure": decision.pressure,
        "limited": decision.limited,
    }
