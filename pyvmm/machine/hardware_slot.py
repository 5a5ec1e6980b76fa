"""The place of a machine's hardware: filled at power-on, empty before it, during a reset and after the end.

Devices, RAM and watchers act on the hardware through it, and nothing happens while there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from pyvmm.errors import HostError
from pyvmm.machine import events as trace
from pyvmm.machine.glimpse import Glimpse
from pyvmm.machine.hardware import Hardware
from pyvmm.machine.runner import VcpuThread
from pyvmm.memory import Region


class HardwareSlot:
    """`hardware` is set and cleared by Machine. `is_running()` is False before the start, paused and at the end."""

    def __init__(self, is_running: Callable[[], bool]) -> None:
        self.hardware: Hardware | None = None
        self._is_running = is_running

    @property
    def threads(self) -> Sequence[VcpuThread]:
        """The vCPUs' threads."""
        return self.hardware.threads if self.hardware is not None else ()

    def map_memory(self, slot: int, region: Region) -> None:
        """Let the guest have `region`. Raises HostError."""
        assert self.hardware is not None, "memory is added only to a running guest"
        self.hardware.map_memory(slot, region)

    def unmap_memory(self, slot: int) -> None:
        """Take a memory slot away again. The vCPUs must not run."""
        if self.hardware is not None:
            self.hardware.unmap_memory(slot)

    @contextmanager
    def stopped_vcpus(self) -> Iterator[None]:
        """A context in which no vCPU runs: for a moment, so guest time goes on."""
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
        """Whether KVM drops zeroes that the guest writes to the byte at `gpa`."""
        hardware = self.hardware
        if hardware is not None:
            hardware.ignore_zero_writes(gpa, on)

    def freeze(self, on: bool) -> None:
        """Keep every vCPU out of the guest, or no more, apart from a pause."""
        hardware = self.hardware
        if hardware is not None:
            hardware.freeze(on)

    def stop(self) -> None:
        """Let no vCPU run on, as behind a PC's reset line: the guest cannot ask for the same again."""
        hardware = self.hardware
        if hardware is not None:
            hardware.stop()

    # On the loop's thread

    def look(self) -> list[Glimpse]:
        """Where the vCPUs are; none while the machine is paused or between two lives."""
        if self.hardware is None or not self._is_running():
            return []
        try:
            return self.hardware.look()
        except HostError:  # the vCPU's thread gets the error too, and ends the machine with it
            return []

    def drain(self) -> None:
        """Hand on writes that KVM queued instead of leaving the guest."""
        if self.hardware is not None:
            self.hardware.drain()

    def trace_exits(self) -> None:
        """The exits of one life of the vCPUs by kind, for traces that leave out the exits themselves."""
        if trace.exit_count.on:
            for thread in self.threads:
                for exit, count in sorted(thread.exits.items()):
                    trace.exit_count(thread.index, count, exit)
