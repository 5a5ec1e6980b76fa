"""The PC's legacy devices: serial ports, power and reset, keyboard controller and clock, at their ports.

`pyvmm.address_map` has the port numbers. The serial ports are mapped in memory, too: `devices.serial.window`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from pyvmm import address_map
from pyvmm.address_map import COM1, COM2
from pyvmm.devices.acpi_pm import AcpiPm, ResetPort
from pyvmm.devices.i8042 import I8042
from pyvmm.devices.rtc.clock import INDEX as RTC_INDEX
from pyvmm.devices.rtc.clock import Rtc
from pyvmm.devices.serial import window as serial_window
from pyvmm.devices.serial.uart import Register as SerialRegister
from pyvmm.devices.serial.uart import Serial
from pyvmm.firmware.acpi import AcpiConfig
from pyvmm.iomap import IoMap
from pyvmm.loop import Loop
from pyvmm.machine.output_batcher import OutputBatcher
from pyvmm.memory import PAGE_SIZE, HostMemory

COM_PORTS = ((COM1, address_map.COM1_LINE), (COM2, address_map.COM2_LINE))
"""(ports, interrupt line) of the console and of the agent."""

WINDOWS = (serial_window.CONSOLE, serial_window.AGENT)
"""The MMIO addresses of the same two serial ports."""

COALESCED = (COM1.start, COM2.start, address_map.RTC.start + RTC_INDEX)
"""Ports of coalesced I/O, whose writes KVM queues until the next exit: the serial ports' data registers, and the
clock's index, which has no effect before an access to the data port. (QEMU coalesces the latter, too.)
"""
COALESCED_MMIO = tuple(address for window in WINDOWS for address in (window.base, window.early))
"""MMIO addresses of coalesced I/O."""

CONSOLE_PERIOD = 0.04
"""Console flush period in seconds while there is output or input; the upper bound of echo latency."""


class Board:
    """The port and MMIO devices. `irq(line, level)` drives an interrupt line, `suppress_ier_writes(gpa, on)` allows
    KVM to drop zeroes written to the byte at `gpa`, or not, `reset(reason)` and `power_off()` handle the guest's
    requests; all four are called on vCPU threads. `console` takes the first serial port's output, on the loop's
    thread or on a vCPU's, as for `OutputBatcher`; `agent` takes the second's, on vCPU threads.
    """

    def __init__(
        self,
        cpus: int,
        loop: Loop,
        *,
        irq: Callable[[int, bool], None],
        suppress_ier_writes: Callable[[int, bool], None],
        reset: Callable[[str], None],
        power_off: Callable[[], None],
        console: Callable[[bytes], None],
        agent: Callable[[bytes], None],
    ) -> None:
        self.ports = IoMap("port")
        self.mmio = IoMap("mmio")
        self.acpi = AcpiConfig.for_cpus(cpus, com_windows=tuple(window.base for window in WINDOWS))
        self._pages = [HostMemory(PAGE_SIZE, huge=False) for _ in WINDOWS]
        self.serials: list[Serial] = []
        self._console = OutputBatcher(console, loop, period=CONSOLE_PERIOD)
        self._data: dict[int, Serial] = {}  # by the addresses of their data registers
        outputs = (self._console.add, agent)
        for (place, line), window, page, output in zip(COM_PORTS, WINDOWS, self._pages, outputs, strict=True):
            name = f"ttyS{len(self.serials)}"
            port = Serial(
                partial(irq, line),
                output,
                page=page.view[:],
                suppress_ier_writes=partial(suppress_ier_writes, window.page),
                name=name,
            )
            self.serials.append(port)
            self.ports.claim(place.start, place.size, port, port.lock)
            for address in (window.base, window.early):
                self.mmio.claim(address, serial_window.SIZE, port, port.lock)
            self._data |= dict.fromkeys((place.start, window.base, window.early), port)
        self.pm = AcpiPm(partial(irq, self.acpi.sci), power_off, clock=loop.clock)
        self.ports.claim(self.acpi.pm_base, address_map.ACPI_PM.size, self.pm, self.pm.lock)
        self.reset_port = ResetPort(lambda: reset("reset port"))
        self.ports.claim(self.acpi.reset_port, address_map.RESET.size, self.reset_port, self.reset_port.lock)
        self.keyboard = I8042(lambda: reset("keyboard controller"), irq)
        for place in (address_map.I8042_DATA, address_map.I8042_STATUS):
            half = _Offset(self.keyboard, place.start - address_map.I8042_DATA.start)
            self.ports.claim(place.start, place.size, half, self.keyboard.lock)
        self._irq = irq
        self.rtc = Rtc(self._rtc_irq, loop)
        self.ports.claim(address_map.RTC.start, address_map.RTC.size, self.rtc, self.rtc.lock)

    def _rtc_irq(self, level: bool) -> None:
        """Drive the clock's two outputs: its interrupt line, and the wake-up signal of a suspended machine."""
        self._irq(address_map.RTC_LINE, level)
        if level:
            self.pm.rtc_alarm()

    def polled(self) -> dict[int, bytearray]:
        """Return the ports that guests poll, with their values for the fast path (`Vcpu.add_poll_fastpath`)."""
        return {
            place.start + SerialRegister.LSR: serial.idle_status
            for (place, _), serial in zip(COM_PORTS, self.serials, strict=True)
        }

    def readonly(self) -> dict[int, HostMemory]:
        """Return the memory that is read-only for the guest, by its gpa."""
        return {window.page: page for window, page in zip(WINDOWS, self._pages, strict=True)}

    def coalesced(self, address: int, data: bytes) -> None:
        """Handle coalesced I/O: bytes written in a row to an address in COALESCED or COALESCED_MMIO."""
        port = self._data.get(address)
        if port is not None:
            port.write_many(data)
        else:
            self.ports.write(address, 1, data[-1])

    def tick(self) -> None:
        """Flush the console periodically, on the loop's thread."""
        self._console.tick()

    def flush(self) -> None:
        """Flush all output that the guest has written to its console."""
        self._console.flush()

    def reset(self) -> None:
        """Reset the devices to power-on state; the time of day goes on."""
        self.flush()
        for port in self.serials:
            port.reset()
        self.pm.reset()
        self.reset_port.reset()
        self.keyboard.reset()
        self.rtc.reset()

    def close(self) -> None:
        """Flush the guest's remaining output and free the memory. The vCPUs must not run any more."""
        self.flush()
        self.rtc.reset()  # its timer
        for page in self._pages:
            page.close()


class _Offset:
    """One port of a device whose ports are not contiguous."""

    def __init__(self, device: I8042, offset: int) -> None:
        self._device = device
        self._offset = offset

    def read(self, offset: int, size: int) -> int:
        return self._device.read(self._offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self._device.write(self._offset, size, value)
