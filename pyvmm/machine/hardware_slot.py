"""A holder of a machine's hardware: set at power-on, empty before it, during a reset and after the end.

Devices, RAM and watchers use the hardware through it; calls have no effect while it is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from pyvmm.errors import HostError
from pyvmm.kvm import Exit
from pyvmm.machine import events as trace
from pyvmm.machine.hardware import Hardware
from pyvmm.machine.runner import VcpuThread
from pyvmm.machine.vcpu_snapshot import VcpuSnapshot
from pyvmm.memory import Region

OnDebug = Callable[[int, Exit], bool]


class HardwareSlot:
    """Holder of the current Hardware: `hardware` is set and cleared by Machine. `is_running()` is False before the
    start, while paused and at the end."""

    def __init__(self, is_running: Callable[[], bool]) -> None:
        self._hardware: Hardware | None = None
        self._on_debug: OnDebug | None = None
        self._is_running = is_running

    @property
    def hardware(self) -> Hardware | None:
        return self._hardware

    @hardware.setter
    def hardware(self, hardware: Hardware | None) -> None:
        self._hardware = hardware
        if hardware is not None:
            hardware.on_debug = self._on_debug

    @property
    def on_debug(self) -> OnDebug | None:
        """The handler of exits that breakpoints caused, for this and later hardware: see `Hardware.on_debug`."""
        return self._on_debug

    @on_debug.setter
    def on_debug(self, handler: OnDebug | None) -> None:
        self._on_debug = handler
        if self._hardware is not None:
            self._hardware.on_debug = handler

    @property
    def threads(self) -> Sequence[VcpuThread]:
        """Return the vCPUs' threads."""
        return self.hardware.threads if self.hardware is not None else ()

    def map_memory(self, slot: int, region: Region) -> None:
        """Map `region` into the guest. Raises HostError."""
        assert self.hardware is not None, "memory is added only to a running guest"
        self.hardware.map_memory(slot, region)

    def unmap_memory(self, slot: int) -> None:
        """Remove a memory slot. The vCPUs must not run."""
        if self.hardware is not None:
            self.hardware.unmap_memory(slot)

    @contextmanager
    def stopped_vcpus(self) -> Iterator[None]:
        """Return a context in which no vCPU runs. It is brief, so guest time goes on."""
        hardware = self.hardware if self._is_running() else None
        if hardware is not None:
            hardware.pause()
        try:
            yield
        finally:
            if hardware is not None:
                hardware.resume()

    # From any thread; the slot may be emptied meanwhile

    def set_irq(self, line: int, level: bool) -> None:
        """Drive an interrupt line."""
        hardware = self.hardware
        if hardware is not None:
            hardware.set_irq(line, level)

    def ignore_zero_writes(self, gpa: int, on: bool) -> None:
        """Have KVM drop zeroes that the guest writes to the byte at `gpa`, or stop that."""
        hardware = self.hardware
        if hardware is not None:
            hardware.ignore_zero_writes(gpa, on)

    def freeze(self, on: bool) -> None:
        """Freeze or unfreeze every vCPU, independently of a pause."""
        hardware = self.hardware
        if hardware is not None:
            hardware.freeze(on)

    def sleep(self, on: bool) -> None:
        """Let every vCPU sleep, or wake up, independently of both."""
        hardware = self.hardware
        if hardware is not None:
            hardware.sleep(on)

    def stop(self) -> None:
        """Stop every vCPU, as a PC's reset line does: the guest cannot repeat its request."""
        hardware = self.hardware
        if hardware is not None:
            hardware.stop()

    def caller(self) -> tuple[int, int] | None:
        """Return index and RIP of the vCPU whose thread calls this at an exit; None on any other thread."""
        hardware = self.hardware
        return None if hardware is None else hardware.caller()

    # On the loop's thread

    def vcpu_snapshots(self) -> list[VcpuSnapshot]:
        """Return the vCPUs' states; empty while the machine is paused or being reset."""
        if self.hardware is None or not self._is_running():
            return []
        try:
            return self.hardware.vcpu_snapshots()
        except HostError:  # the vCPU's thread gets the same error and ends the machine
            return []

    def drain(self) -> None:
        """Drain the coalesced I/O that KVM has queued."""
        if self.hardware is not None:
            self.hardware.drain()

    def trace_exits(self) -> None:
        """Trace the number of exits by kind since power-on, for traces that leave out the exits themselves."""
        if trace.exit_count.on:
            for thread in self.threads:
                for exit, count in sorted(thread.exits.items()):
                    trace.exit_count(thread.index, count, exit)
