"""The machine as its users see it: made from a MachineConfig, started, driven, ended.

    loop = Loop()
    with Machine(config, loop, console=print_bytes) as machine:
        machine.start()
        outcome = machine.run()

Everything is called on the loop's thread, and belongs there; `console` may be called from a vCPU's when the guest
writes faster than the loop turns.

    prelaunch --start--> running <--pause/resume--> paused        running --reset--> running
    running --power off--> shutdown    running --crash--> guest-panicked    running --KVM gives up--> internal-error
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

from pyvmm import contain
from pyvmm.errors import HostError, PyvmmError
from pyvmm.firmware.linux import load_linux
from pyvmm.guest_time import GuestTimers
from pyvmm.hyperv.crash import CrashReport
from pyvmm.inbox import Inbox
from pyvmm.kvm import Cap, Kvm
from pyvmm.loop import Loop, Pending
from pyvmm.machine import cpu, engines, hotplug
from pyvmm.machine import events as trace
from pyvmm.machine.agent import GuestAgent
from pyvmm.machine.board import Board
from pyvmm.machine.boot_files import BootFiles
from pyvmm.machine.config import MachineConfig
from pyvmm.machine.console_tail import ConsoleTail
from pyvmm.machine.glimpse import Glimpse
from pyvmm.machine.hardware import Hardware
from pyvmm.machine.life_signs import LifeSigns
from pyvmm.machine.monitored import NOTICES_KEPT, Listener, Monitored, State
from pyvmm.machine.panic import PanicWatch
from pyvmm.machine.ram import Ram
from pyvmm.machine.reporting import FreePages
from pyvmm.machine.runner import install_kick
from pyvmm.machine.throttle import Throttles
from pyvmm.memory import Region
from pyvmm.watchdog import Watchdog

if TYPE_CHECKING:
    from pyvmm.devices.balloon.device import BalloonDevice
    from pyvmm.devices.serial import Serial
    from pyvmm.machine.inventory import SizeWatch
    from pyvmm.machine.plugging import Plugging
    from pyvmm.machine.pressure import Pressure
    from pyvmm.machine.services import Services
    from pyvmm.vmbus.bus import Vmbus

_TICK_PERIOD = 0.1
"""Seconds after which console output is shown that KVM queued, even if the guest makes no exit, or that runs by."""

RESET_SPACING = 0.2
"""Seconds between two resets that the guest asks for, at least. A reset holds the loop for some 40 ms: a guest that
resets over and over takes a fifth of it, and the monitor answers in between."""

_MEMORY_PERIOD = 0.5
"""Seconds between two points of the memory's time line, in traces that have it."""


@dataclass(slots=True)
class Outcome:
    """Why a machine ended. `text` is for people: the panic's line, the error."""

    kind: Literal["poweroff", "quit", "reset", "panic", "error"]
    text: str = ""
    crash: CrashReport | None = None


class Machine(Monitored):
    """One virtual machine. Raises ConfigError and HostError from the constructor and `start`."""

    def __init__(
        self,
        config: MachineConfig,
        loop: Loop,
        *,
        console: Callable[[bytes], None] = lambda data: None,
    ) -> None:
        config.check()
        install_kick()
        self.config = config
        self.loop = loop
        self.guest_time = GuestTimers(loop, frozen=True, on_stall=self._set_guest_clock)
        self.name = config.name
        self.outcome: Outcome | None = None
        self.resets = 0
        self._state: State = "prelaunch"
        self._started = time.monotonic()
        self._listeners: list[Listener] = []
        self._notices: deque[str] = deque(maxlen=NOTICES_KEPT)
        self._hardware: Hardware | None = None
        self._console_output = console
        self._console_tail = ConsoleTail()
        self._reset_wanted: str | None = None  # why the guest asked for a reset, until that begins
        self._reset_earliest = 0.0  # loop clock
        self.watchdog = Watchdog(loop)
        self._resetting = Pending(loop, self._reset_soon)
        self._powering_off = Pending(loop, self._power_off)
        self._kvm = Kvm(config.kvm)
        self._host_cpuid = cpu.host_entries(self._kvm)
        self._ram = Ram(
            config,
            hotplug.physical_limit(self._host_cpuid),
            self._kvm.check(Cap.NR_MEMSLOTS),
            map=self._map_slot,
            unmap=self._unmap_slot,
            quiet=self._quiet,
        )
        self.memory, self.window = self._ram.memory, self._ram.window
        self.engine = engines.choose(
            config.engine,
            self._kvm,
            config.cpus,
            self.memory,
            loop,
            invariant_tsc=cpu.has_invariant_tsc(self._host_cpuid),
        )
        if config.page_reporting:
            self.engine.report_free_pages(FreePages(self.memory).discard)
        self.engine.on_crash = self._crashed
        self.panic = PanicWatch(
            config.on_panic,
            self.guest_time,
            look=self._look,
            console=self._console_tail.since,
            emit=self._emit,
            end=self._panicked,
        )
        self.life_signs = LifeSigns(
            self.guest_time,
            console=self._console_tail.since,
            contacts=lambda: self._services.bus.contacts if self._services is not None else 0,
            look=self._look,
            notice=self.notice,
            died=self._died,
            silence=config.silence,
        )
        self.engine.on_reset = partial(self._want_reset, "Hyper-V reset MSR")
        self.agent = GuestAgent(lambda data: self.board.serials[1].receive(data), self.guest_time)
        self._agent_input = Inbox(self.agent.received, loop)
        self.board = Board(
            config.cpus,
            loop,
            irq=self._irq,
            unheard=self._unheard,
            reset=self._want_reset,
            power_off=self._want_power_off,
            console=self._console,
            agent=self._agent_input.add,
        )
        self.throttles = Throttles(loop, self.board.serials, self._freeze, self._held)
        self.hurried = False  # asked to end when it had ended already: its last output is not waited for
        self._services: Services | None = None
        self._plugging: Plugging | None = None
        self._size_watch: SizeWatch | None = None
        self.pressure: Pressure | None = None  # with a balloon whose status reports are wanted
        self.pid = os.getpid()
        self.console_place = "null"  # where the console leads, for query-chardev
        self.sandbox: dict[str, Any] = {"mode": "off"}  # what confines the process
        self.boot_files = BootFiles()
        self._tick_timer = loop.every(_TICK_PERIOD, self._tick)
        self._memory_timer = loop.every(_MEMORY_PERIOD, self._trace_memory)

    # Building

    def _map_slot(self, slot: int, region: Region) -> None:
        assert self._hardware is not None, "memory is added only to a running guest"
        self._hardware.map_memory(slot, region)

    def _unmap_slot(self, slot: int) -> None:
        if self._hardware is not None:
            self._hardware.unmap_memory(slot)

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """No vCPU runs meanwhile: for a moment, so guest time goes on."""
        hardware = self._hardware if self._state == "running" else None
        if hardware is not None:
            hardware.pause()
        try:
            yield
        finally:
            if hardware is not None:
                hardware.resume()

    @property
    def services(self) -> Services:
        """The VMBus and its devices. Made by `start`, or before if somebody asks."""
        if self._services is None:
            from pyvmm.machine.inventory import SizeWatch
            from pyvmm.machine.plugging import Plugging
            from pyvmm.machine.pressure import Pressure
            from pyvmm.machine.services import Services

            self._services = Services(
                self.config, self.guest_time, self.memory, self.engine, self._discard, window=self.window
            )
            self._plugging = Plugging(self._services, self._emit)
            self._size_watch = SizeWatch(self._plugging, self._emit)
            balloon = self._services.balloon
            if balloon is not None:
                balloon.on_change.append(self._balloon_changed)
                if self.config.status_report:
                    balloon.on_status.append(self._status_report)
                    self.pressure = Pressure(balloon, self.config.limits, self._emit, clock=self.guest_time.clock)
        return self._services

    @property
    def bus(self) -> Vmbus:
        return self.services.bus

    @property
    def plugging(self) -> Plugging:
        """Devices coming and going on the VMBus."""
        _ = self.services
        assert self._plugging is not None
        return self._plugging

    @property
    def balloon(self) -> BalloonDevice | None:
        return self.services.balloon

    @property
    def serials(self) -> list[Serial]:
        """ttyS0, the console, and ttyS1, the agent's."""
        return self.board.serials

    def _discard(self, gpa: int, size: int) -> None:
        """Give ballooned pages back to the host."""
        done = self.memory.discard(gpa, size)
        if trace.memory_discarded.on:
            trace.memory_discarded(done, gpa)

    def _balloon_changed(self, actual: int) -> None:
        if self._hardware is None:
            return  # the machine is taken apart: nobody has got memory back
        self._trace_memory()
        self._emit("BALLOON_CHANGE", {"actual": actual})
        self._look_at_size()

    def _look_at_size(self) -> None:
        if self._size_watch is not None:
            self._size_watch.look()

    def _status_report(self, available: int, committed: int) -> None:
        self._emit("HV_BALLOON_STATUS_REPORT", {"committed": committed, "available": available})

    def _power_on(self, *, fresh: bool) -> None:
        """Load the kernel and make the hardware that will run it."""
        before = time.monotonic()
        state = load_linux(
            self.memory,
            kernel=self.config.kernel,
            initrd=self.config.initrd,
            cmdline=self.config.cmdline,
            ram_size=self.config.memory,
            acpi=self.board.acpi,
            protocol=self.config.entry,
            fresh=fresh,
            opener=self.boot_files.open,
        )
        if trace.loaded.on:
            trace.loaded(str(self.config.kernel), round((time.monotonic() - before) * 1000))
        self._reset_wanted = None
        self._hardware = Hardware(
            self._kvm,
            self._host_cpuid,
            self.memory,
            self.engine,
            self.board.ports,
            self.board.mmio,
            reset=self._want_reset,
            failed=lambda error: self.loop.post(self._failed, error),
            inbox=self._agent_input,
            coalesced=self.board.coalesced,
            polled=self.board.polled(),
            readonly=self.board.readonly(),
        )
        self._hardware.boot(state)
        self.life_signs.power_on()

    # Life

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def start(self) -> None:
        """Power on: load the kernel and let the vCPUs run."""
        self._power_on(fresh=True)
        assert self._hardware is not None
        self._set_state("running")
        self._hardware.start()
        self.guest_time.thaw()
        _ = self.services  # while the guest boots

    def run(self) -> Outcome:
        """Serve the machine until it ends."""
        self.watchdog.start()
        try:
            while self.outcome is None:
                self.loop.run()
        finally:
            self.watchdog.stop()
        return self.outcome

    def halt(self) -> None:
        """After the end: the guest runs no more, and all it wrote is handed on. The monitor may still ask."""
        if self._hardware is not None:
            self._hardware.halt()
            self._hardware.drain()
        self.board.flush()

    def close(self) -> None:
        """Give everything back to the host. Harmless twice."""
        self._tick_timer.cancel()
        self._memory_timer.cancel()
        self.life_signs.close()
        self.panic.close()
        self.guest_time.close()
        hardware, self._hardware = self._hardware, None
        if hardware is not None:
            if self._services is not None:
                self._services.bus.reset()
            hardware.close()
        self.board.close()
        self._ram.close()
        self.boot_files.close()
        self._kvm.close()

    def reset(self, reason: str = "host") -> None:
        """Reset the machine: RAM cleared, devices new, the kernel loaded again. Counts as the end if the
        configuration says no reboot.
        """
        if self._hardware is None or self.outcome is not None:
            return
        if trace.reset.on:
            trace.reset(reason)
        if reason != "host" and self.panic.undecided and self.panic.report is not None:
            self._panicked(self.panic.report)  # no crash kernel ran: the one that panicked has reset the machine
            return
        if self.config.reboot and not self.life_signs.reset(by_guest=reason != "host"):
            return
        cause = {"guest": reason != "host", "reason": "guest-reset" if reason != "host" else "host-qmp-system-reset"}
        self._emit("RESET" if self.config.reboot else "SHUTDOWN", cause)
        if not self.config.reboot:
            self._end(self._last_words() or Outcome("reset", reason), "shutdown")
            return
        paused = self._state == "paused"
        self._trace_exits()
        self._hardware.halt()  # before memory is taken from under the guest's feet
        self.bus.reset()
        self.plugging.reset()
        self._look_at_size()  # what was added is gone, though the guest may have had as much as at boot
        self._hardware.close()
        self._hardware = None
        for region in self.memory:
            self.memory.discard(region.gpa, region.size)
        self.board.reset()
        self._agent_input.flush()
        self.agent.reset()
        self.panic.restarted()
        if self.pressure is not None:
            self.pressure.restarted()
        self.resets += 1
        try:
            self._power_on(fresh=True)
        except PyvmmError as error:  # the kernel's file may have become another
            self._failed(error)
            return
        hardware = self._hardware
        assert hardware is not None
        hardware.freeze(self.throttles.frozen)
        if paused:
            for thread in hardware.threads:
                thread.ask(pause=True)
        else:
            self._set_state("running")
        hardware.start()

    def pause(self) -> None:
        """Stop the vCPUs, and guest time with them: what waits for the guest waits on. The monitor is served."""
        if self._hardware is not None and self._state == "running":
            self._hardware.pause()
            self.guest_time.freeze()
            self._set_state("paused")
            self._emit("STOP", {})

    def resume(self) -> None:
        if self._hardware is not None and self._state == "paused":
            self._set_state("running")
            self.guest_time.thaw()
            self._hardware.resume()
            self._set_guest_clock()
            self._emit("RESUME", {})

    def _set_guest_clock(self) -> None:
        """The guest could not run for a while: its time of day may be wrong."""
        if self._services is not None and self._services.timesync is not None:
            self._services.timesync.sync()

    def powerdown(self) -> None:
        """Ask the guest to shut down: by the shutdown service if its driver is there, else by the power button."""
        self._emit("POWERDOWN", {})
        shutdown = self.services.shutdown
        if shutdown is None or not shutdown.request("poweroff"):
            self.board.pm.press_power_button()

    def quit(self, cause: str = "host-qmp-quit") -> None:
        """End the machine at once; `cause` is QEMU's ShutdownCause."""
        if self.outcome is not None:
            self.hurried = True
        else:
            self._emit("SHUTDOWN", {"guest": False, "reason": cause})
            self._end(Outcome("quit"), "shutdown")

    # What the guest and KVM bring about, from vCPU threads

    def _irq(self, line: int, level: bool) -> None:
        hardware = self._hardware
        if hardware is not None:
            hardware.set_irq(line, level)

    def _unheard(self, gpa: int, on: bool) -> None:
        hardware = self._hardware
        if hardware is not None:
            hardware.drop_zeroes(gpa, on)

    def _freeze(self, on: bool) -> None:
        hardware = self._hardware
        if hardware is not None:
            hardware.freeze(on)

    def _held(self, on: bool) -> None:
        """Its output is not taken: time in which it may not run, as a pause is."""
        if on:
            self.guest_time.freeze("output")
        else:
            self.guest_time.thaw("output")

    def _want_reset(self, reason: str) -> None:
        if self._reset_wanted is None:
            self._reset_wanted = reason
            self._stop_vcpus()
            self._resetting.ask()

    def _want_power_off(self) -> None:
        self._stop_vcpus()
        self._powering_off.ask()

    def _stop_vcpus(self) -> None:
        """The guest does nothing any more, as behind a PC's reset line: it cannot ask for the same again."""
        hardware = self._hardware
        if hardware is not None:
            hardware.stop()

    # The same on the loop

    def _reset_soon(self) -> None:
        """The reset that the guest asked for, RESET_SPACING after the one before at the earliest."""
        wait = self._reset_earliest - self.loop.clock()
        if wait > 0:
            self.loop.after(wait, self._reset_soon)
        elif self._reset_wanted is not None:  # else the monitor has reset the machine meanwhile
            self.reset(self._reset_wanted)
            self._reset_earliest = self.loop.clock() + RESET_SPACING

    def _power_off(self) -> None:
        if self.outcome is None:
            if trace.power_off.on:
                trace.power_off("ACPI S5")
            outcome = self._last_words() or Outcome("poweroff")
            self._emit(
                "SHUTDOWN",
                {"guest": True, "reason": "guest-panic" if outcome.kind == "panic" else "guest-shutdown"},
            )
            self._end(outcome, "shutdown")

    @contain.contained("crash report")
    def _crashed(self, report: CrashReport) -> None:
        if self.outcome is None:
            self.panic.reported(report)

    def _last_words(self) -> Outcome | None:
        """How a machine ends whose guest panicked and was not the end of it: a crash kernel ran, or it was kept."""
        report = self.panic.report
        return Outcome("panic", report.summary(), report) if report is not None else None

    def _panicked(self, report: CrashReport) -> None:
        """The guest is dead, as its last words in the crash MSRs say."""
        if self.outcome is None:
            self._emit("SHUTDOWN", {"guest": True, "reason": "guest-panic"})
            self._end(Outcome("panic", report.summary(), report), "guest-panicked")

    def _died(self, line: str) -> bool:
        """The guest died before it had crash MSRs to write to. Whether that is the machine's end."""
        if self.outcome is not None:
            return True
        keep = self.panic.policy == "keep"
        self._emit("GUEST_PANICKED", {"action": "run" if keep else "poweroff", "x-text": line})
        if not keep:
            self._emit("SHUTDOWN", {"guest": True, "reason": "guest-panic"})
            self._end(Outcome("panic", line), "guest-panicked")
        return not keep

    def _look(self) -> list[Glimpse]:
        """Where the vCPUs are; none while the machine is paused or between two lives."""
        if self._hardware is None or self._state != "running":
            return []
        try:
            return self._hardware.look()
        except HostError:  # the vCPU's thread will hear of it, and say so
            return []

    def _failed(self, error: BaseException) -> None:
        if self.outcome is not None:
            return
        text = str(error)
        if not isinstance(error, PyvmmError):
            if contain.strict:
                raise error
            contain.report("vCPU thread", error)
            text = f"an error in pyvmm itself ended the machine: {type(error).__name__}; its traceback is above"
        self._emit("SHUTDOWN", {"guest": False, "reason": "host-error"})
        self._end(Outcome("error", text), "internal-error")

    def _end(self, outcome: Outcome, state: State) -> None:
        self.outcome = outcome
        self._set_state(state)
        self._drain()
        self._trace_exits()
        self.loop.stop()

    def _set_state(self, state: State) -> None:
        self._state = state
        if trace.state.on:
            trace.state(state)

    @contain.contained("console")
    def _tick(self) -> None:
        self._drain()
        self.board.tick()

    def _drain(self) -> None:
        if self._hardware is not None:
            self._hardware.drain()

    def _console(self, data: bytes) -> None:
        self._console_tail(data)
        self._console_output(data)

    def _trace_memory(self) -> None:
        if trace.memory.on and self._services is not None:
            memory = self._memory_figures()
            trace.memory(memory["actual"], memory["target"], memory["resident"])

    def _trace_exits(self) -> None:
        """What one life of the vCPUs came to, for traces that leave out the exits themselves."""
        if trace.exit_count.on and self._hardware is not None:
            for thread in self._hardware.threads:
                for exit, count in sorted(thread.exits.items()):
                    trace.exit_count(thread.index, count, exit)
