"""QMP commands for the guest's memory pressure and automatic sizing. None is QEMU's.

{"execute": "x-query-pressure", "arguments": {"count": 60}}
{"return": {"current": ..., "demand": ..., "pressure": 84, "autosize": {...}, "samples": [{"time": ..., ...}]}}
"""

from __future__ import annotations

from pyvmm.control.errors import ControlError
from pyvmm.control.table import Argument, MonitoredMachine, command
from pyvmm.qapi import Empty, PressureInfo

DEFAULT_COUNT = 60
"""Default number of samples in a reply: a minute's."""


@command("x-query-pressure", count=Argument(int, optional=True), since=Argument(int, optional=True))
def query_pressure(machine: MonitoredMachine, count: int | None = None, since: int | None = None) -> PressureInfo:
    """Return the guest's demand and its reports over time: the last `count`, or those later than `since` (wall
    clock, seconds), oldest first.
    """
    if count is not None and count < 0:
        raise ControlError("Parameter 'count' expects a number of samples")
    if count is None:
        count = DEFAULT_COUNT if since is None else 1 << 30
    return machine.pressure_info(count, None if since is None else float(since))


@command("x-autosize", enable=bool)
def autosize(machine: MonitoredMachine, enable: bool) -> Empty:
    """Suspend automatic sizing, or resume it (a `balloon` command suspends it too)."""
    machine.set_autosize(enable)
    return {}
