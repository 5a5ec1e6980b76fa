"""The VMBus of a machine, its devices and their listeners.

Made a moment after the vCPUs have started: Linux needs seconds to its first VMBus message, and importing and building
all this meanwhile shortens the way to the guest's first line. A message that comes earlier waits (see
`pyvmm.hyperv.hypercall.Hypercalls`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pyvmm import qapi
from pyvmm.devices.balloon.device import BalloonDevice
from pyvmm.devices.ic.shutdown import Shutdown
from pyvmm.devices.ic.timesync import TimeSync
from pyvmm.machine import events as trace
from pyvmm.machine.device_set import DeviceSet
from pyvmm.machine.devices import Parts
from pyvmm.machine.inventory import SizeChangeEvents, memory_figures
from pyvmm.machine.pressure import Pressure
from pyvmm.machine.resize_events import ResizeEvents
from pyvmm.qapi import Emit
from pyvmm.vmbus.bus import Vmbus

if TYPE_CHECKING:
    from pyvmm.loop import Loop
    from pyvmm.machine.vsock import Vsock


class Services:
    """The bus and its devices, on guest time. `has_hardware()` is False while a reset or the end is in progress."""

    def __init__(self, parts: Parts, emit: Emit, *, has_hardware: Callable[[], bool]) -> None:
        self.config = parts.config
        self._emit = emit
        self._has_hardware = has_hardware
        self.bus = Vmbus(parts.timers, parts.memory, parts.engine, max_version=parts.config.max_vmbus)
        self.devices = DeviceSet(self.bus, parts, emit)
        self.pressure: Pressure | None = None  # with a balloon whose status reports are wanted
        self._vsock: Vsock | None = None
        self._size_events = SizeChangeEvents(self.devices, emit)
        balloon = self.balloon
        if balloon is not None:
            balloon.on_change.append(self._balloon_changed)
            ResizeEvents(balloon, emit, parts.timers)
            if parts.config.status_report:
                balloon.on_status.append(self._status_report)
                self.pressure = Pressure(balloon, parts.config.limits, emit, clock=parts.timers.clock)

    @property
    def balloon(self) -> BalloonDevice | None:
        """The hv-balloon device while it is on the bus, else None."""
        return self.devices.find(BalloonDevice)

    def vsock(self, loop: Loop) -> Vsock:
        """Return the host's side of Hyper-V sockets, made at the first call."""
        if self._vsock is None:
            from pyvmm.machine.vsock import Vsock

            self._vsock = Vsock(self.bus, loop)
        return self._vsock

    def reset(self) -> None:
        """Handle a machine reset. The vCPUs must not run."""
        self.bus.reset()
        self.devices.reset()
        self._size_events.poll()  # hot-added memory is gone, even if the guest's size was the boot size
        if self.pressure is not None:
            self.pressure.reset()

    def request_poweroff(self) -> bool:
        """Request a shutdown by the shutdown service; return False if its driver is not loaded."""
        shutdown = self.devices.find(Shutdown)
        return shutdown is not None and shutdown.request("poweroff")

    def set_guest_clock(self) -> None:
        """Send the guest the time of day: its own clock may be wrong after a pause."""
        timesync = self.devices.find(TimeSync)
        if timesync is not None:
            timesync.sync()

    def trace_memory(self) -> None:
        """Trace one sample of the memory time line."""
        if trace.memory.on:
            memory = memory_figures(self.config, self.balloon)
            trace.memory(memory["actual"], memory["target"], memory["resident"])

    def _balloon_changed(self, actual: int) -> None:
        if self._has_hardware():  # else no guest has memory given back
            self.trace_memory()
            self._emit(qapi.BALLOON_CHANGE({"actual": actual}))
            self._size_events.poll()

    def _status_report(self, available: int, committed: int) -> None:
        self._emit(qapi.HV_BALLOON_STATUS_REPORT({"committed": committed, "available": available}))
