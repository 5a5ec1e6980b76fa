"""The VMBus of a machine and what is on it.

Made a moment after the vCPUs have started: Linux needs seconds to its first VMBus message, and importing and building
all this meanwhile shortens the way to the guest's first line. A message that comes earlier waits (see
`pyvmm.hyperv.hypercall.Hypercalls`).
"""

from __future__ import annotations

from collections.abc import Callable

from pyvmm.devices.balloon.device import BalloonDevice
from pyvmm.devices.balloon.hot_add import Window
from pyvmm.devices.balloon.ledger import PAGE_SHIFT
from pyvmm.devices.balloon.protocol import WIN7, WIN8, WIN10
from pyvmm.devices.balloon.tuning import Tuning
from pyvmm.devices.ic.heartbeat import Heartbeat
from pyvmm.devices.ic.shutdown import Shutdown
from pyvmm.devices.ic.timesync import TimeSync
from pyvmm.guest_time import GuestTimers
from pyvmm.hyperv.engine import Engine
from pyvmm.machine.config import MachineConfig
from pyvmm.memory import GuestMemory
from pyvmm.vmbus.bus import Vmbus

_BALLOON_VERSIONS = {"1.0": WIN7, "2.0": WIN8, "3.0": WIN10}


def _tuning(config: MachineConfig) -> Tuning:
    return Tuning(
        balloon_piece=config.balloon_piece >> PAGE_SHIFT,
        hot_add_piece=config.balloon_piece >> PAGE_SHIFT,
        newest_version=_BALLOON_VERSIONS[config.balloon_version],
        wants_status=config.status_report,
    )


class Services:
    """The bus and its devices, on guest time; a device the configuration leaves out is None."""

    def __init__(
        self,
        config: MachineConfig,
        timers: GuestTimers,
        memory: GuestMemory,
        engine: Engine,
        discard: Callable[[int, int], object],
        window: Window | None = None,
    ) -> None:
        self.bus = Vmbus(timers, memory, engine, max_version=config.max_vmbus)
        self.balloon: BalloonDevice | None = None
        self.heartbeat: Heartbeat | None = None
        self.shutdown: Shutdown | None = None
        self.timesync: TimeSync | None = None
        if "balloon" in config.devices:
            ram = [(region.gpa, region.size) for region in memory]
            self.balloon = BalloonDevice(
                ram,
                discard,
                clock=timers.clock,
                # Automatic sizing begins each life of the guest at its boot size.
                keep_target=config.keep_target and config.limits is None,
                tuning=_tuning(config),
                window=window,
                granule=config.mem_backend.page_size,
            )
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
