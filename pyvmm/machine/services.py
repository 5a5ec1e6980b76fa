"""The VMBus of a machine and what is on it.

Made a moment after the vCPUs have started: Linux needs seconds to its first VMBus message, and importing and building
all this meanwhile shortens the way to the guest's first line. A message that comes earlier waits (see
`pyvmm.hyperv.hypercall.Hypercalls`).
"""

from __future__ import annotations

from collections.abc import Callable

from devices.balloon.device import BalloonDevice
from devices.ic.heartbeat import Heartbeat
from devices.ic.shutdown import Shutdown
from devices.ic.timesync import TimeSync
from pyvmm.hyperv.engine import Engine
from pyvmm.loop import Loop
from pyvmm.machine.config import MachineConfig
from pyvmm.memory import GuestMemory
from pyvmm.vmbus.bus import Vmbus


class Services:
    """The bus and its devices; a device the configuration leaves out is None."""

    def __init__(
        self,
        config: MachineConfig,
        loop: Loop,
        memory: GuestMemory,
        engine: Engine,
        discard: Callable[[int, int], object],
    ) -> None:
        self.bus = Vmbus(loop, memory, engine, max_version=config.max_vmbus)
        self.balloon: BalloonDevice | None = None
        self.heartbeat: Heartbeat | None = None
        self.shutdown: Shutdown | None = None
        self.timesync: TimeSync | None = None
        if "balloon" in config.devices:
            ram = [(region.gpa, region.size) for region in memory]
            self.balloon = BalloonDevice(ram, discard, keep_target=config.keep_target)
            self.bus.add(self.balloon)
        if "heartbeat" in config.devices:
            self.heartbeat = Heartbeat()
            self.bus.add(self.heartbeat)
        if "shutdown" in config.devices:
            self.shutdown = Shutdown()
            self.bus.add(self.shutdown)
        if "timesync" in config.devices:
            self.timesync = TimeSync(reference_time=engine.reference_time)
            self.bus.add(self.timesync)
