"""The machine's public interface: built from a MachineConfig, started, controlled, closed.

    loop = Loop()
    with Machine(config, loop, console=print_bytes) as machine:
        machine.start()
        outcome = machine.run()

All methods belong to the loop's thread; `console` may be called from a vCPU's when the guest writes faster than the
loop turns.

    prelaunch --start--> running <--pause/resume--> paused        running --reset--> running
    running --a disk's image fails, werror=stop--> io-error --resume--> running
    prelaunch --start, config.paused--> prelaunch --resume--> running        paused --reset--> prelaunch
    prelaunch, running or paused --held--> debug --released--> running
    running --power off--> shutdown    running --crash--> guest-panicked    running --KVM gives up--> internal-error
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Literal, Self

from pyvmm import contain, qapi
from pyvmm.errors import PyvmmError
from pyvmm.firmware.linux import load_linux
from pyvmm.guest_time import GuestTimers
from pyvmm.hyperv.crash import CrashReport
from pyvmm.inbox import Inbox
from pyvmm.kvm import Cap, Kvm
from pyvmm.loop import Loop, Pending, Timer
from pyvmm.machine import cpu, engines, hotplug
from pyvmm.machine import events as trace
from pyvmm.machine.agent import GuestAgent
from pyvmm.machine.board import Board
from pyvmm.machine.boot_files import BootFiles
from pyvmm.machine.boot_watch import BootWatch
from pyvmm.machine.config import MachineConfig
from pyvmm.machine.hardware import Hardware
from pyvmm.machine.hardware_slot import HardwareSlot
from pyvmm.machine.monitor import MonitorView
from pyvmm.machine.notifier import Notifier
from pyvmm.machine.outcome import Outcome
from pyvmm.machine.panic import PanicWatch
from pyvmm.machine.ram import Ram
from pyvmm.machine.reporting import FreePages
from pyvmm.machine.runner import install_kick
from pyvmm.machine.throttle import Throttles
from pyvmm.machine.unhandled import UnhandledLog
from pyvmm.tail import Tail
from pyvmm.watchdog import Watchdog

if TYPE_CHECKING:
    from pyvmm.devices.balloon.device import BalloonDevice
    from pyvmm.firmware.entry import RealMode
    from pyvmm.machine.debugger import Debugger
    from pyvmm.machine.disks import OpenDisk
    from pyvmm.machine.links import Links
    from pyvmm.machine.services import Services
    from pyvmm.machine.test_devices import TestDevices
    from pyvmm.machine.traps import Traps
    from pyvmm.memory import Region


_TICK_PERIOD = 0.1
"""Period, in seconds, of flushing console output that KVM has queued without an exit, or that is batched."""

RESET_SPACING = 0.2
"""Least time in seconds between two resets by the guest. A reset blocks the loop for some 40 ms: a guest that resets
in a loop takes a fifth of its time, and the monitor answers in between."""

_MEMORY_PERIOD = 0.5
"""Sampling period, in seconds, of the memory time line in traces."""


class Machine:
    """One virtual machine. Raises ConfigError and HostError from the constructor and `start`.

    `monitor` is its monitor's view; `services` are its VMBus and devices; `slot` holds its Hardware.
    """

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
        self.guest_time = GuestTimers(loop, frozen=True, on_stall=self._stalled)
        self.name = config.name
        self.outcome: Outcome | None = None
        self.resets = 0
        self.state: qapi.RunState = "prelaunch"
        self.notifier = Notifier()
        self.slot = HardwareSlot(lambda: self.state in ("running", "debug"))
        self.unhandled = UnhandledLog(self.slot.caller)
        self.console_tail = Tail(onward=console)
        self._reset_wanted: str | None = None  # reason of the guest's pending reset
        self._reset_earliest = 0.0  # loop clock
        self.watchdog = Watchdog(loop)
        self._resetting = Pending(loop, self._reset_soon)
        self._powering_off = Pending(loop, self._power_off)
        self.debugger: Debugger | None = None  # once one has connected
        self.traps: Traps | None = None  # once coverage, or a forced return, was asked for
        self.links: Links | None = None
        self.disks: tuple[OpenDisk, ...] = ()
        if config.disks:
            from pyvmm.machine.disks import open_disks

            self.disks = open_disks(config.disks)
        self.kvm = Kvm(config.kvm)
        self._host_cpuid = cpu.host_entries(self.kvm, hidden=config.hidden_features, vendor=config.cpu_vendor)
        self.ram = Ram(
            config,
            hotplug.physical_limit(self._host_cpuid),
            self.kvm.check(Cap.NR_MEMSLOTS),
            map=self.slot.map_memory,
            unmap=self.slot.unmap_memory,
            quiet=self.slot.stopped_vcpus,
        )
        self.memory, self.window = self.ram.memory, self.ram.window
        self.engine = engines.choose(
            config.engine,
            self.kvm,
            config.cpus,
            self.memory,
            loop,
            invariant_tsc=cpu.has_invariant_tsc(self._host_cpuid),
            enlightenments=config.enlightenments,
        )
        self.taps = self.engine.taps
        self.taps.after, self.taps.post = self.guest_time.after, self.guest_time.post
        self.kvm.tap = self.taps.ioctl
        if self.engine.shares_slots:
            self.engine.synic.exclusive = self.slot.stopped_vcpus
        if config.page_reporting:
            self.engine.report_free_pages(FreePages(self.memory, self.taps.discard).discard)
        self.engine.on_crash = self._crashed
        self.unhandled.watch_engine(self.engine, all_msrs="msr" in config.debug)
        self.panic = PanicWatch(
            config.on_panic,
            self.guest_time,
            vcpu_snapshots=self.slot.vcpu_snapshots,
            console=self.console_tail.since,
            emit=self.notifier.emit,
            end=self._panicked,
        )
        self.boot_watch = BootWatch(
            self.guest_time,
            console=self.console_tail.since,
            contacts=lambda: self._services.bus.contacts if self._services is not None else 0,
            vcpu_snapshots=self.slot.vcpu_snapshots,
            notice=self.notifier.notice,
            died=self._died,
            silence=config.silence,
        )
        self.engine.on_reset = partial(self._want_reset, "Hyper-V reset MSR")
        self.agent = GuestAgent(lambda data: self.board.serials[1].receive(data), self.guest_time)
        self._agent_input = Inbox(self.agent.received, loop)
        self.board = Board(
            config.cpus,
            loop,
            irq=self.slot.set_irq,
            suppress_ier_writes=self.slot.ignore_zero_writes,
            reset=self._want_reset,
            power_off=self._want_power_off,
            console=self.console_tail,
            agent=self._agent_input.add,
        )
        self.board.ports.on_unclaimed = self.board.mmio.on_unclaimed = self.unhandled.io
        self._test_devices: TestDevices | None = None
        if config.test_devices:
            from pyvmm.machine.test_devices import TestDevices

            self._test_devices = TestDevices(
                self.board,
                loop,
                slot=self.slot,
                memory=self.memory,
                engine=self.engine,
                ram_size=config.memory,
                end=self._power_off,
                wake=lambda state: self.reset("wake-up", woken=state),
            )
        self.throttles = Throttles(loop, self.board.serials, self.slot.freeze, self.guest_time)
        self.hurried = False  # quit was requested after the end: do not wait for the last output to drain
        self._services: Services | None = None
        self.boot_files = BootFiles()
        self._tick_timer = loop.every(_TICK_PERIOD, self._tick)
        self._memory_timer: Timer | None = None
        self.monitor = MonitorView(self)
        if config.nets:
            from pyvmm.machine.links import Links

            self.links = Links(config, loop)

    # Building

    @property
    def services(self) -> Services:
        """The VMBus, its devices and their listeners; valid from `start_services` on."""
        assert self._services is not None, "start_services() comes first"
        return self._services

    @property
    def balloon(self) -> BalloonDevice | None:
        """The hv-balloon device while it is on the bus, else None."""
        return self.services.balloon

    def start_services(self) -> None:
        """Make the VMBus and its devices. `start` calls it once the vCPUs run; idempotent."""
        if self._services is None:
            from pyvmm.machine.devices import Parts
            from pyvmm.machine.services import Services

            parts = Parts(
                self.config,
                self.guest_time,
                self.memory,
                self.engine,
                self.window,
                disks=self.disks,
                links=self.links,
                emit=self.notifier.emit,
                notice=self.notifier.notice,
                stop_for_error=partial(self.pause, "io-error"),
            )
            self._services = Services(parts, self.notifier.emit, has_hardware=lambda: self.slot.hardware is not None)
            self._memory_timer = self.loop.every(_MEMORY_PERIOD, self._services.trace_memory)

    def _power_on(self, woken: RealMode | None = None) -> None:
        """Load the kernel and make the hardware that will run it; `woken`: RAM holds a kernel that goes on there."""
        before = time.monotonic()
        state = woken or load_linux(
            self.memory,
            kernel=self.config.kernel,
            initrd=self.config.initrd,
            modules=self.config.modules,
            cmdline=self.config.cmdline,
            ram_size=self.config.memory,
            acpi=self.board.acpi,
            protocol=self.config.entry,
            opener=self.boot_files.open,
        )
        if trace.loaded.on and woken is None:
            trace.loaded(str(self.config.kernel), round((time.monotonic() - before) * 1000))
        self._reset_wanted = None
        self.slot.hardware = self.make_hardware(self.memory)
        self.slot.hardware.boot(state)
        if self.traps is not None and woken is None:
            self.traps.powered_on()
        self.boot_watch.power_on()

    def make_hardware(self, boot_ram: Iterable[Region]) -> Hardware:
        """Make a KVM VM with its vCPUs, in the state of power-on. Raises HostError."""
        return Hardware(
            self.kvm,
            self._host_cpuid,
            boot_ram,
            self.engine,
            cpu.kvm_entries(self.kvm) if self.config.kvm_leaves else self.engine.cpuid(),
            self.board.ports,
            self.board.mmio,
            reset=self._want_reset,
            failed=lambda error: self.loop.post(self._failed, error),
            inbox=self._agent_input,
            unknown_exit=self.unhandled.exit,
            coalesced=self.board.coalesced,
            polled=self.board.polled(),
            readonly=self.board.readonly(),
        )

    # Life

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def start(self) -> None:
        """Power on: load the kernel and let the vCPUs run."""
        self._power_on()
        if self.links is not None:
            self.links.wait()
        assert self.slot.hardware is not None
        self.slot.hardware.start(paused=self.config.paused)
        if not self.config.paused:
            self.set_state("running")
            self.guest_time.thaw()
        self.start_services()  # while the guest boots

    def run(self) -> Outcome:
        """Run the event loop until the machine ends."""
        self.watchdog.start()
        try:
            while self.outcome is None:
                self.loop.run()
        finally:
            self.watchdog.stop()
        return self.outcome

    def halt(self) -> None:
        """Stop the vCPUs for good and flush the guest's output. Monitor queries are still served."""
        if self.slot.hardware is not None:
            self.slot.hardware.halt()
            self.slot.hardware.drain()
        self.board.flush()

    def close(self) -> None:
        """Release all resources. Idempotent."""
        if self.debugger is not None:
            self.debugger.close()
        self._tick_timer.cancel()
        if self._memory_timer is not None:
            self._memory_timer.cancel()
        self.boot_watch.close()
        self.panic.close()
        self.guest_time.close()
        hardware, self.slot.hardware = self.slot.hardware, None
        if hardware is not None:
            if self._services is not None:
                self._services.bus.reset()
            hardware.close()
        if self._services is not None:
            self._services.devices.close()
        else:
            for disk in self.disks:
                disk.image.close()
            self.disks = ()
        if self.links is not None:
            self.links.close()
        self.engine.close()
        self.board.close()
        self.ram.close()
        self.boot_files.close()
        self.kvm.close()

    def reset(self, reason: str = "host", *, woken: RealMode | None = None) -> None:
        """Reset the machine: clear RAM, reset devices, load the kernel again. Ends the machine if the configuration
        says no reboot. `woken`: it wakes from S3 instead, so RAM and devices on the board stay as they are.
        """
        if self.slot.hardware is None or self.outcome is not None:
            return
        if trace.reset.on:
            trace.reset(reason)
        by_guest = reason != "host"
        if woken is None:
            if by_guest and self.panic.undecided and self.panic.report is not None:
                self._panicked(self.panic.report)  # no crash kernel ran: the one that panicked has reset the machine
                return
            if self.config.reboot and not self.boot_watch.reset(by_guest=by_guest):
                return
            event = qapi.RESET if self.config.reboot else qapi.SHUTDOWN
            cause: qapi.ShutdownCause = "guest-reset" if by_guest else "host-qmp-system-reset"
            self.notifier.emit(event({"guest": by_guest, "reason": cause}))
            if not self.config.reboot:
                self._end(self._panic_outcome() or Outcome("reset", reason), "shutdown")
                return
        waits = self.state in ("paused", "prelaunch", "io-error")
        self.slot.trace_exits()
        self.slot.hardware.halt()  # the vCPUs must not run while guest memory is discarded
        self.taps.reset()
        self.services.reset()
        self.slot.hardware.close()
        self.slot.hardware = None
        if woken is None:
            for region in self.memory:
                self.memory.discard(region.gpa, region.size)
            self.board.reset()
            self.resets += 1
        if self._test_devices is not None:
            self._test_devices.reset()
        if self.traps is not None:
            self.traps.forget()
        self._agent_input.flush()
        self.agent.reset()
        self.panic.reset()
        try:
            self._power_on(woken)
        except PyvmmError as error:  # the kernel's file may have changed
            self._failed(error)
            return
        hardware = self.slot.hardware
        assert hardware is not None
        hardware.freeze(self.throttles.frozen)
        if self.debugger is not None and self.debugger.attached:
            self.debugger.restarted()
        else:
            self.set_state("prelaunch" if waits else "running")
        hardware.start(paused=self.state == "prelaunch")

    def pause(self, state: Literal["paused", "io-error"] = "paused") -> None:
        """Pause the vCPUs and guest time, so that timeouts for the guest stand still. The monitor is still served."""
        if self.slot.hardware is not None and self.state == "running":
            self.slot.hardware.pause()
            self.guest_time.freeze()
            self.set_state(state)
            self.notifier.emit(qapi.STOP({}))

    def resume(self) -> None:
        if self.slot.hardware is not None and self.state in ("paused", "prelaunch", "io-error"):
            self.set_state("running")
            self.guest_time.thaw()
            self.slot.hardware.resume()
            self.services.set_guest_clock()
            self.services.devices.resumed()
            self.notifier.emit(qapi.RESUME({}))

    def _stalled(self) -> None:
        if self._services is not None:
            self._services.set_guest_clock()

    def powerdown(self) -> None:
        """Request a guest shutdown: by the shutdown service if its driver is loaded, else by the power button."""
        self.notifier.emit(qapi.POWERDOWN({}))
        if not self.services.request_poweroff():
            self.board.pm.press_power_button()

    def quit(self, cause: qapi.ShutdownCause = "host-qmp-quit") -> None:
        """End the machine at once; `cause` is QEMU's ShutdownCause."""
        if self.outcome is not None:
            self.hurried = True
        else:
            self.notifier.emit(qapi.SHUTDOWN({"guest": False, "reason": cause}))
            self._end(Outcome("quit"), "shutdown")

    # Events caused by the guest and KVM, on vCPU threads

    def _want_reset(self, reason: str) -> None:
        if self._reset_wanted is None:
            self._reset_wanted = reason
            self.slot.stop()
            self._resetting.ask()

    def _want_power_off(self) -> None:
        self.slot.stop()
        self._powering_off.ask()

    # The same on the loop

    def _reset_soon(self) -> None:
        """Perform the guest's pending reset, RESET_SPACING after the previous one at the earliest."""
        wait = self._reset_earliest - self.loop.clock()
        if wait > 0:
            self.loop.after(wait, self._reset_soon)
        elif self._reset_wanted is not None:  # else the monitor has already reset the machine
            self.reset(self._reset_wanted)
            self._reset_earliest = self.loop.clock() + RESET_SPACING

    def _power_off(self, status: int | None = None) -> None:
        """End the machine as the guest requested; `status`: by the test devices' exit port, with this exit status."""
        if self.outcome is None:
            if trace.power_off.on:
                trace.power_off("ACPI S5" if status is None else f"exit port, status {status}")
            ended = Outcome("poweroff") if status is None else Outcome("exit", status=status)
            outcome = self._panic_outcome() or ended
            cause: qapi.ShutdownCause = "guest-panic" if outcome.kind == "panic" else "guest-shutdown"
            data: qapi.ShutdownData = {"guest": True, "reason": cause}
            if outcome.kind == "exit":
                data["x-status"] = outcome.status
            self.notifier.emit(qapi.SHUTDOWN(data))
            self._end(outcome, "shutdown")

    @contain.contained("crash report")
    def _crashed(self, report: CrashReport) -> None:
        if self.debugger is not None and self.debugger.crashed(partial(self._crashed, report)):
            return  # reported by the debugger's next `continue`
        if self.outcome is None:
            self.panic.reported(report)

    def _panic_outcome(self) -> Outcome | None:
        """Return the outcome if a panic did not end the machine at once: a crash kernel ran, or policy `keep`."""
        report = self.panic.report
        return Outcome("panic", report.summary(), report) if report is not None else None

    def _panicked(self, report: CrashReport) -> None:
        """End the machine after a panic reported in the crash MSRs."""
        if self.outcome is None:
            self.notifier.emit(qapi.SHUTDOWN({"guest": True, "reason": "guest-panic"}))
            self._end(Outcome("panic", report.summary(), report), "guest-panicked")

    def _died(self, line: str) -> bool:
        """Handle a guest that died before it could use the crash MSRs. Return whether that ends the machine."""
        if self.outcome is not None:
            return True
        keep = self.panic.policy == "keep"
        self.notifier.emit(qapi.GUEST_PANICKED({"action": "run" if keep else "poweroff", "x-text": line}))
        if not keep:
            self.notifier.emit(qapi.SHUTDOWN({"guest": True, "reason": "guest-panic"}))
            self._end(Outcome("panic", line), "guest-panicked")
        return not keep

    def _failed(self, error: BaseException) -> None:
        if self.outcome is not None:
            return
        text = str(error)
        if not isinstance(error, PyvmmError):
            if contain.strict:
                raise error
            contain.report("vCPU thread", error)
            text = f"an error in pyvmm itself ended the machine: {type(error).__name__}; its traceback is above"
        self.notifier.emit(qapi.SHUTDOWN({"guest": False, "reason": "host-error"}))
        self._end(Outcome("error", text), "internal-error")

    def _end(self, outcome: Outcome, state: qapi.RunState) -> None:
        self.outcome = outcome
        self.set_state(state)
        if self.debugger is not None:
            self.debugger.ended(int(outcome.kind in ("panic", "error")))
        self.slot.drain()
        self.slot.trace_exits()
        if trace.page_map.on and self._services is not None:
            from pyvmm.machine.page_map import trace_map

            trace_map(self)
        self.loop.stop()

    def set_state(self, state: qapi.RunState) -> None:
        self.state = state
        if trace.state.on:
            trace.state(state)

    @contain.contained("console")
    def _tick(self) -> None:
        self.slot.drain()
        self.board.tick()
