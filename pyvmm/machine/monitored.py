"""What the monitor asks of a machine and orders it to do (pyvmm.control.commands.Controlled), but for its life.

The half of `Machine` that looks and passes on; the other half makes, starts, resets and ends.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from pyvmm.errors import ConfigError, HostError, NotActiveError
from pyvmm.machine import events as trace
from pyvmm.memory import PAGE_SIZE

if TYPE_CHECKING:
    from pyvmm.devices.balloon.device import BalloonDevice
    from pyvmm.guest_time import GuestTimers
    from pyvmm.hyperv.engine import Engine
    from pyvmm.loop import Loop
    from pyvmm.machine.agent import GuestAgent
    from pyvmm.machine.config import MachineConfig
    from pyvmm.machine.console_tail import ConsoleTail
    from pyvmm.machine.hardware import Hardware
    from pyvmm.machine.hotplug import HotAddWindow
    from pyvmm.machine.panic import PanicWatch, Policy
    from pyvmm.machine.plugging import Plugging
    from pyvmm.machine.pressure import Pressure
    from pyvmm.vmbus.bus import Vmbus
    from pyvmm.watchdog import Watchdog

State = Literal["prelaunch", "running", "paused", "shutdown", "guest-panicked", "internal-error"]
Listener = Callable[[str, dict[str, Any]], None]

NOTICES_KEPT = 8
"""Notices that `pyvmm status` shows: the last ones, for a guest can bring about many."""

NO_STATUS_REPORTS = "guest memory status reporting not enabled"


class Monitored(ABC):
    """A machine as the monitor sees it. All on the loop's thread. `Machine` sets the attributes."""

    config: MachineConfig
    loop: Loop
    guest_time: GuestTimers
    name: str
    engine: Engine
    agent: GuestAgent
    window: HotAddWindow | None
    pressure: Pressure | None  # with a balloon whose status reports are wanted
    pid: int  # of the process by which the user knows the machine
    console_place: str  # where the console leads, for query-chardev
    sandbox: dict[str, Any]  # what confines the process
    resets: int
    watchdog: Watchdog
    _state: State
    _started: float
    _hardware: Hardware | None
    _console_tail: ConsoleTail
    _listeners: list[Listener]
    _notices: deque[str]
    panic: PanicWatch

    @property
    @abstractmethod
    def bus(self) -> Vmbus:
        """The VMBus."""

    @property
    @abstractmethod
    def plugging(self) -> Plugging:
        """Devices coming and going on the VMBus."""

    @property
    @abstractmethod
    def balloon(self) -> BalloonDevice | None:
        """hv-balloon, unless the machine was made without."""

    def status(self) -> str:
        """QEMU's RunState."""
        return self._state

    def on_event(self, listener: Listener) -> None:
        """Tell `listener(name, data)` of each event, by its QMP name."""
        self._listeners.append(listener)

    def notice(self, text: str) -> None:
        """Tell the user something about the machine: an event, a line on stderr, and a line of `pyvmm status`."""
        if trace.notice.on:
            trace.notice(text)
        self._notices.append(text)
        self._emit("X_NOTICE", {"text": text})

    def set_action(self, panic: Policy | None, reboot: bool | None) -> None:
        """Change what happens when the guest panics, and whether a reset starts it again."""
        if panic is not None:
            self.config.on_panic = self.panic.policy = panic
        if reboot is not None:
            self.config.reboot = reboot

    def _emit(self, name: str, data: dict[str, Any]) -> None:
        for listener in self._listeners:
            listener(name, data)

    def balloon_set(self, size: int) -> dict[str, Any]:
        """Ask the guest for a memory size in bytes; what will be reached, and why if that is not `size`.

        Holds automatic sizing: an order goes before a rule.
        """
        plan = self._active_balloon().set_target(size)
        if self.pressure is not None:
            self.pressure.set_automatic(False)
        told = {"target": size, "will-reach": plan.will_reach, "reason": plan.reason}
        self._emit("X_BALLOON_TARGET", told)
        return told

    def _active_balloon(self) -> BalloonDevice:
        if self.balloon is None:
            raise NotActiveError("No balloon device has been activated")  # QEMU's words
        return self.balloon

    def balloon_actual(self) -> int:
        """The guest's memory as both sides know it, in bytes."""
        return self._active_balloon().actual

    def hv_balloon_report(self) -> dict[str, Any] | None:
        """The guest's last status report, in bytes; None before the first."""
        if self.balloon is None:
            raise ConfigError("no hv-balloon device present")  # QEMU's words, as the next
        if not self.config.status_report:
            raise ConfigError(NO_STATUS_REPORTS)
        report = self.balloon.last_status
        if report is None:
            return None
        return {"committed": report.committed_pages * PAGE_SIZE, "available": report.available_pages * PAGE_SIZE}

    def pressure_info(self, count: int, since: float | None = None) -> dict[str, Any]:
        """The guest's memory pressure, and its reports over time. Raises like `hv_balloon_report`."""
        self._active_balloon()
        if self.pressure is None:
            raise ConfigError(NO_STATUS_REPORTS)
        return self.pressure.info(count, since)

    def set_autosize(self, on: bool) -> None:
        """Let automatic sizing decide, or hold it. Raises ConfigError where there is none."""
        self._active_balloon()
        if self.pressure is None:
            raise ConfigError(NO_STATUS_REPORTS)
        self.pressure.set_automatic(on)

    def info_vmbus(self) -> list[dict[str, Any]]:
        """One entry a VMBus device, by relid."""
        from pyvmm.machine.inventory import vmbus_devices

        return vmbus_devices(self.bus.info(), self.plugging)

    def info_cpus(self) -> list[int]:
        """The host's thread id of each vCPU; 0 if it does not run."""
        threads = self._hardware.threads if self._hardware is not None else []
        return [each.native_id for each in threads]

    def info_devices(self) -> list[dict[str, str]]:
        """`driver`, `id` and `path` of each VMBus device."""
        return self.plugging.info()

    def info_memory_devices(self) -> list[dict[str, Any]]:
        """QEMU's MemoryDeviceInfo of each device that brings memory."""
        from pyvmm.machine.inventory import memory_devices

        return memory_devices(self.plugging, self.window)

    def info_memory_size(self) -> tuple[int, int]:
        """Bytes of RAM at boot, and hot-added since."""
        from pyvmm.machine.inventory import plugged_memory

        return self.config.memory, plugged_memory(self.plugging)

    def info_consoles(self) -> list[tuple[str, str]]:
        """Label and place of each serial port's other end."""
        return [("serial0", self.console_place), ("serial1", "agent")]

    def add_device(self, driver: str, id: str = "") -> None:
        """Put a VMBus device back on the bus. Raises ConfigError."""
        self.plugging.add(driver, id)

    def remove_device(self, id: str) -> None:
        """Take a VMBus device off the bus, by id or path. Raises ConfigError."""
        self.plugging.remove(id)

    def execute(self, command: str, seconds: int, done: Callable[[dict[str, Any] | HostError], None]) -> None:
        """Run a shell command in the guest and collect what it writes. Raises ConfigError."""
        from pyvmm.machine.execute import execute

        execute(self.agent, self.guest_time, command, seconds, done)

    def resident(self) -> int:
        """Bytes of this process that the host keeps in memory."""
        try:
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError as error:
            raise HostError(f"/proc/self/statm: {error.strerror}") from error

    def page_reporting(self) -> dict[str, Any] | None:
        """What the guest's free page reports came to, sizes in bytes; None if it is off."""
        extended = self.engine.hypercalls.extended
        return None if extended is None else asdict(extended.counters)

    def console_since(self, offset: int) -> tuple[int, bytes]:
        """The guest's console output from byte `offset` of all on, as far as it is kept; the number of its first."""
        return self._console_tail.since(offset)

    def _memory_figures(self) -> dict[str, Any]:
        return {
            "boot": self.config.memory,
            "actual": self.balloon.actual if self.balloon is not None else self.config.memory,
            "target": self.balloon.target if self.balloon is not None else None,
            "resident": self.resident(),
        }

    def describe(self) -> dict[str, Any]:
        """All that `pyvmm status` shows."""
        hardware = self._hardware
        return {
            "name": self.name,
            "pid": self.pid,
            "status": self._state,
            "engine": self.engine.name,
            "cpus": self.config.cpus,
            "kernel": str(self.config.kernel),
            "uptime": round(time.monotonic() - self._started, 1),
            "resets": self.resets,
            "sandbox": self.sandbox,
            "agent": {"ready": self.agent.ready, "release": self.agent.release},
            "memory": self._memory_figures(),
            "balloon": self.balloon.info() if self.balloon is not None else None,
            "page-reporting": self.page_reporting(),
            "autosize": self.pressure.describe() if self.pressure is not None else None,
            "vmbus": self.info_vmbus(),
            "on-panic": self.panic.policy,
            "panics": self.panic.count,
            "notices": list(self._notices),
            "loop": self.watchdog.info(),
            "exits": {f"vcpu{t.index}": dict(t.exits) for t in hardware.threads} if hardware is not None else {},
        }
