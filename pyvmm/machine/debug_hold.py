"""The machine's state while a debugger holds its vCPUs: `debug`, with guest time standing still as in a pause."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from pyvmm import qapi

if TYPE_CHECKING:
    from pyvmm.machine.machine import Machine

CLOCK_PATIENCE: Final = 1.0
"""Seconds for which the guest may be held before its clock is set anew: not for each step."""


class DebugHold:
    """Moves one machine into the state `debug` and out of it. All methods run on the loop's thread."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._since = 0.0  # loop clock
        self._postponed: list[Callable[[], None]] = []

    def postpone(self, callback: Callable[[], None]) -> None:
        """Call `callback` once the machine runs again."""
        self._postponed.append(callback)

    def begin(self) -> None:
        """Note that all vCPUs are held."""
        machine = self._machine
        if machine.state == "running":
            machine.guest_time.freeze()
            machine.notifier.emit(qapi.STOP({}))
        elif machine.state not in ("paused", "prelaunch"):
            return
        self._since = machine.loop.clock()
        machine.set_state("debug")
        for thread in machine.slot.threads:
            thread.request(pause=False)  # held instead

    def end(self) -> None:
        """Note that vCPUs are about to be released."""
        machine = self._machine
        if machine.state != "debug":
            return
        machine.set_state("running")
        machine.guest_time.thaw()
        if machine.loop.clock() - self._since > CLOCK_PATIENCE:
            machine.services.set_guest_clock()
        machine.notifier.emit(qapi.RESUME({}))
        while self._postponed:
            machine.loop.post(self._postponed.pop(0))
