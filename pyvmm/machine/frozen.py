"""A machine whose guest is frozen: no KVM, no vCPU thread, RAM as a private copy, so that the process can be forked.

    running Machine --FrozenMachine()--> frozen --os.fork()--> frozen child --resume()--> running Machine
                                           |    --os.fork()--> frozen child --resume()--> running Machine
                                           +--resume()--> running Machine

Everything in Python is inherited by the child, with the VMBus and all devices: only what the kernel holds for this
process is saved, freed and made anew. The guest's clocks (TSC, VM clock, reference counter), the loop's, and all that
derive from it stop and go on together, so neither guest nor devices notice how long the machine stood still.
"""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
from pathlib import Path

from pyvmm.errors import ConfigError, HostError
from pyvmm.kvm import Kvm
from pyvmm.machine.machine import Machine
from pyvmm.stoppable_clock import StoppableClock

SETTLE_TURNS = 1000
"""Turns of the loop until all that a paused guest has caused must be done."""

THREADS_LIMIT = 5.0
"""Seconds in which ended threads must be gone from the process."""


class FrozenMachine:
    """The frozen state of a machine, which was running in a process with no thread but the loop's and the vCPUs'.

    Made and resumed on the loop's thread. Raises ConfigError for a machine that cannot be frozen, which then runs on,
    and HostError.
    """

    def __init__(self, machine: Machine) -> None:
        hardware = machine.slot.hardware
        if hardware is None or machine.state != "running":
            raise ConfigError(f"the machine is {machine.state}: only a running one can be frozen")
        if machine.debugger is not None and machine.debugger.attached:
            raise ConfigError("a debugger is connected: disconnect it before the machine is frozen")
        if any(not disk.image.read_only for disk in machine.disks):
            raise ConfigError("the machine has a disk that it can write: forks would all write to it; add `,ro`")
        clock = machine.loop.clock
        assert isinstance(clock, StoppableClock), "the loop of a machine that is frozen has a clock that stops"
        if machine.links is not None and machine.links.shared:
            raise ConfigError(
                "a network's link would be shared by all forks: give the machine --net none, or no --net"
            )
        machine.services.devices.quiesce()
        _check_threads()
        native = _native_threads(but="kvm") - len(threading.enumerate())  # those of others, such as faulthandler's
        self.machine = machine
        self._clock = clock
        hardware.pause()
        machine.state = "paused"  # while "running", what settles may stop the vCPUs for a moment and start them again
        try:
            self._settle()
            if machine.outcome is not None or machine.slot.hardware is not hardware:
                raise ConfigError("the guest ended or reset the machine just before it was frozen")
            clock.stop()
            self._saved = hardware.save()
        except BaseException:
            clock.start()
            if machine.outcome is None:
                machine.state = "running"
                hardware.resume()
            raise
        machine.slot.hardware = None
        hardware.release()
        machine.kvm.close()
        for backing in machine.ram.backings:
            backing.freeze()
        _wait_for_threads(1 + max(0, native))
        gc.collect()
        gc.freeze()  # a collection in a child would write to every object, and so copy all of Python's memory

    def _settle(self) -> None:
        """Run the loop until nothing is left of what the guest has caused."""
        loop, slot = self.machine.loop, self.machine.slot
        for _ in range(SETTLE_TURNS):
            slot.drain()
            if loop.idle:
                return
            loop.step(0)
        raise HostError("the machine's loop has more and more to do: it cannot be frozen")

    def resume(self) -> None:
        """Let the guest run again, in this process: the one that froze it, or a fork of it. Raises HostError."""
        machine, saved = self.machine, self._saved
        machine.loop.renew()
        machine.kvm = Kvm(machine.config.kvm)
        machine.kvm.tap = machine.taps.ioctl
        hardware = machine.make_hardware(saved.boot_ram)
        passed = 0.0

        def start_clocks() -> None:
            nonlocal passed
            passed = self._clock.start()

        hardware.restore(saved, start_clocks)
        machine.engine.attach(passed)
        machine.slot.hardware = hardware
        hardware.freeze(machine.throttles.frozen)
        machine.monitor.pid = os.getpid()
        machine.state = "running"
        hardware.start()


def _check_threads() -> None:
    """Raise ConfigError if this process has threads that would be missing in a fork."""
    others = [thread.name for thread in threading.enumerate() if thread is not threading.current_thread()]
    others = [name for name in others if not name.startswith("vcpu")]
    if others:
        raise ConfigError(f"threads of this process would be missing in a fork: {', '.join(others)}")


def _native_threads(but: str = "\n") -> int:
    """Return the number of this process's threads, without those whose names begin with `but`, as KVM's workers."""
    names = []
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            names.append((thread / "comm").read_text())
    return sum(not name.startswith(but) for name in names)


def _wait_for_threads(number: int) -> None:
    """Wait until so many threads are left: one that Python has joined may still be on its way out."""
    limit = time.monotonic() + THREADS_LIMIT
    while _native_threads() > number and time.monotonic() < limit:
        time.sleep(0.0005)
