"""The monitor's view of a machine: the queries and commands of `pyvmm.control.table.MonitoredMachine`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from pyvmm import qapi
from pyvmm.errors import ConfigError, NotActiveError
from pyvmm.machine.guest_access import GuestAccess
from pyvmm.machine.inventory import (
    memory_devices,
    memory_figures,
    plugged_memory,
    resident_memory,
    vmbus_devices,
)
from pyvmm.memory import PAGE_SIZE

if TYPE_CHECKING:
    import socket

    from pyvmm.cover_sites import Place
    from pyvmm.devices.balloon.device import BalloonDevice
    from pyvmm.machine.debugger import Debugger
    from pyvmm.machine.disks import HotDisks
    from pyvmm.machine.integration import Integration
    from pyvmm.machine.machine import Machine
    from pyvmm.machine.network_cards import NetworkCards
    from pyvmm.machine.notifier import Listener
    from pyvmm.machine.panic import Policy
    from pyvmm.machine.pressure import Pressure

NO_STATUS_REPORTS = "guest memory status reporting not enabled"


class FaultRules(Protocol):
    """The part of `pyvmm.faults.FaultSet`, which is above this layer, that the monitor uses."""

    def add_text(self, rule: str) -> int: ...

    def remove(self, fault: int) -> None: ...

    def info(self) -> list[qapi.FaultInfo]: ...


def _no_rules() -> FaultRules:
    raise ConfigError("this machine takes no fault rules: `pyvmm run` makes one that does")


class MonitorView:
    """Queries and commands of one machine. All methods run on the loop's thread, after its services have started."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._started = machine.loop.clock()
        self.loop = machine.loop
        self.name = machine.name
        self.pid = os.getpid()  # the process id shown to the user
        self.console_place = "null"  # the console's backend, for query-chardev
        self.fault_rules: Callable[[], FaultRules] = _no_rules  # made at the first call
        self.sandbox: qapi.SandboxInfo = {"mode": "off"}  # the sandbox of the process
        self.guest = GuestAccess(machine)

    # The machine's life

    def status(self) -> qapi.RunState:
        """Return QEMU's RunState."""
        return self._machine.state

    def pause(self) -> None:
        self._machine.pause()

    def resume(self) -> None:
        self._machine.resume()

    def reset(self) -> None:
        self._machine.reset()

    def powerdown(self) -> None:
        self._machine.powerdown()

    def quit(self, cause: qapi.ShutdownCause = "host-qmp-quit") -> None:
        self._machine.quit(cause)

    def on_event(self, listener: Listener) -> None:
        """Call `listener(name, data)` for each event, by its QMP name."""
        self._machine.notifier.listeners.append(listener)

    def set_action(self, panic: Policy | None, reboot: bool | None) -> None:
        """Set the panic policy, and whether the machine reboots after a reset."""
        machine = self._machine
        if panic is not None:
            machine.config.on_panic = machine.panic.policy = panic
        if reboot is not None:
            machine.config.reboot = reboot

    def check_debugger(self) -> None:
        """Raise ConfigError if no debugger can be served now."""
        self._debugger().check()

    def debug(self, connection: socket.socket, monitor: Callable[[str], str]) -> None:
        """Serve the debugger at `connection`; `monitor` runs its `monitor` commands. Raises ConfigError."""
        self._debugger().serve(connection, monitor)

    def _debugger(self) -> Debugger:
        if self._machine.debugger is None:
            from pyvmm.machine.debugger import Debugger

            self._machine.debugger = Debugger(self._machine)
        return self._machine.debugger

    # Coverage

    def cover_start(
        self, module: str, build_id: str, sites: Sequence[Place | None], exits: Sequence[int]
    ) -> qapi.CoverInfo:
        """Place a breakpoint for each block of a module. Raises ConfigError."""
        from pyvmm.machine.traps import traps_of
        from pyvmm.machine.watched import Site

        found = [None if each is None else Site(*each) for each in sites]
        return traps_of(self._machine).watch(module, build_id, found, exits).describe()

    def cover_info(self) -> list[qapi.CoverInfo]:
        """Return what was seen of the watched modules."""
        traps = self._machine.traps
        return [each.describe() for each in traps.modules.values()] if traps is not None else []

    def cover_stop(self, module: str | None) -> list[qapi.CoverInfo]:
        """Take out the breakpoints of a module, or of all; return what was seen. Raises ConfigError."""
        traps = self._machine.traps
        names = list(traps.modules) if traps is not None else []
        if module is not None and module not in names:
            raise ConfigError(f"coverage of {module} is not on" + (f": {', '.join(names)} is" if names else ""))
        if traps is not None and module is None:
            traps.dismiss()
        found = [traps.unwatch(name) for name in ([module] if module else names)] if traps is not None else []
        return [each.describe() for each in found if each is not None]

    # Memory

    def balloon_set(self, size: int) -> qapi.BalloonReply:
        """Set the balloon's target in bytes. Return the size to be reached, with the reason if that is not `size`.

        Suspends automatic sizing: a manual target has priority.
        """
        plan = self._balloon().set_target(size)
        pressure = self._machine.services.pressure
        if pressure is not None:
            pressure.set_automatic(False)
        reply: qapi.BalloonReply = {"target": size, "will-reach": plan.will_reach, "reason": plan.reason}
        self._machine.notifier.emit(qapi.X_BALLOON_TARGET(reply))
        return reply

    def _balloon(self) -> BalloonDevice:
        balloon = self._machine.services.balloon
        if balloon is None:
            raise NotActiveError("No balloon device has been activated")  # QEMU's message
        return balloon

    def balloon_actual(self) -> int:
        """Return the guest's current memory size, confirmed by both sides, in bytes."""
        return self._balloon().actual

    def hv_balloon_report(self) -> qapi.HvBalloonInfo | None:
        """Return the guest's last status report, in bytes; None before the first."""
        balloon = self._machine.services.balloon
        if balloon is None:
            raise ConfigError("no hv-balloon device present")  # QEMU's message, like the next
        if not self._machine.config.status_report:
            raise ConfigError(NO_STATUS_REPORTS)
        report = balloon.last_status
        if report is None:
            return None
        return {"committed": report.committed_pages * PAGE_SIZE, "available": report.available_pages * PAGE_SIZE}

    def pressure_info(self, count: int, since: float | None = None) -> qapi.PressureInfo:
        """Return the guest's memory pressure, and its reports over time. Raises like `hv_balloon_report`."""
        return self._pressure().info(count, since)

    def set_autosize(self, on: bool) -> None:
        """Resume or suspend automatic sizing. Raises ConfigError if it is not configured."""
        self._pressure().set_automatic(on)

    def _pressure(self) -> Pressure:
        self._balloon()
        pressure = self._machine.services.pressure
        if pressure is None:
            raise ConfigError(NO_STATUS_REPORTS)
        return pressure

    def resident(self) -> int:
        """Return the resident size of this process in bytes."""
        return resident_memory()

    def page_map(self) -> qapi.PageMap:
        """Return who owns which page of the guest's address space."""
        from pyvmm.machine.page_map import page_map

        return page_map(self._machine)

    def page_reporting(self) -> qapi.PageReportingInfo | None:
        """Return statistics of free page reporting, sizes in bytes; None if it is off."""
        extended = self._machine.engine.hypercalls.extended
        if extended is None:
            return None
        counters = extended.counters
        return {
            "calls": counters.calls,
            "discarded": counters.discarded,
            "refused": counters.refused,
            "failed": counters.failed,
        }

    # Devices

    def info_vmbus(self) -> list[qapi.VmbusChannelInfo]:
        """Return one entry per VMBus channel, by relid."""
        services = self._machine.services
        return vmbus_devices(services.bus.info(), services.devices)

    def info_cpus(self) -> list[int]:
        """Return the host's thread id of each vCPU; 0 if it does not run."""
        return [each.native_id for each in self._machine.slot.threads]

    def info_devices(self) -> list[dict[str, str]]:
        """Return `driver`, `id` and `path` of each VMBus device."""
        rows = self._machine.services.devices.info()
        return [{name: each[name] for name in ("driver", "id", "path")} for each in rows]

    def info_memory_devices(self) -> list[qapi.MemoryDeviceInfo]:
        """Return QEMU's MemoryDeviceInfo of each memory device."""
        return memory_devices(self._machine.services.devices, self._machine.window)

    def info_memory_size(self) -> tuple[int, int]:
        """Return the bytes of boot RAM, and of hot-added memory."""
        return self._machine.config.memory, plugged_memory(self._machine.services.devices)

    def info_consoles(self) -> list[tuple[str, str]]:
        """Return label and backend of each serial port."""
        return [("serial0", self.console_place), ("serial1", "agent")]

    def nets(self) -> NetworkCards:
        """Return what describes network cards and moves their cables."""
        from pyvmm.machine.network_cards import NetworkCards

        return NetworkCards(self._machine.services.devices)

    def add_device(self, driver: str, id: str = "") -> None:
        """Add a VMBus device to the bus. Raises ConfigError."""
        self._machine.services.devices.add(driver, id)

    def remove_device(self, id: str) -> None:
        """Remove a VMBus device from the bus, or a disk, by id or path. Raises ConfigError."""
        disk = self.disks().find(id)
        if disk is not None:
            self.disks().remove(disk)
        else:
            self._machine.services.devices.remove(id)

    def disks(self) -> HotDisks:
        """Return what adds, resizes and describes disks."""
        from pyvmm.machine.disks import HotDisks

        return HotDisks(self._machine.services.devices, self._machine.notifier.emit)

    # The guest

    @property
    def integration(self) -> Integration:
        """The guest's integration services."""
        from pyvmm.machine.integration import Integration

        return Integration(self._machine.services.devices)

    def console_since(self, offset: int) -> tuple[int, bytes]:
        """Return the kept console output from byte `offset` on, after the offset of its first byte."""
        return self._machine.console_tail.since(offset)

    def describe(self) -> qapi.MachineInfo:
        """Return the data that `pyvmm status` shows."""
        machine, services = self._machine, self._machine.services
        balloon, pressure = services.balloon, services.pressure
        return {
            "name": self.name,
            "pid": self.pid,
            "status": self.status(),
            "engine": machine.engine.name,
            "cpus": machine.config.cpus,
            "kernel": str(machine.config.kernel),
            "uptime": round(self.loop.clock() - self._started, 1),
            "resets": machine.resets,
            "sandbox": self.sandbox,
            "agent": {
                "ready": machine.agent.ready,
                "release": machine.agent.release,
                "sessions-only": machine.agent.sessions_only,
            },
            "memory": memory_figures(machine.config, balloon),
            "balloon": balloon.info() if balloon is not None else None,
            "guest": self.integration.facts(),
            "page-reporting": self.page_reporting(),
            "autosize": pressure.describe() if pressure is not None else None,
            "vmbus": self.info_vmbus(),
            "nets": self.nets().info(),
            "on-panic": machine.panic.policy,
            "panics": machine.panic.count,
            "notices": list(machine.notifier.notices),
            "loop": machine.watchdog.info(),
            "unhandled": machine.unhandled.describe(),
            "exits": {f"vcpu{each.index}": dict(each.exits) for each in machine.slot.threads},
        }
