"""The PC around the vCPUs: serial ports, power and reset, keyboard controller, clock, on their ports.

0x3f8 ttyS0, the console    0x2f8 ttyS1, the agent    0x600 ACPI power management    0xcf9 reset
0x60, 0x64 keyboard controller (reset only)           0x70 CMOS clock
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from devices.acpi_pm import PORTS as PM_PORTS
from devices.acpi_pm import RESET_PORT, AcpiPm, ResetPort
from devices.i8042 import BASE as I8042_BASE
from devices.i8042 import DATA as I8042_DATA
from devices.i8042 import I8042
from devices.i8042 import STATUS as I8042_STATUS
from devices.rtc import BASE as RTC_BASE
from devices.rtc import INDEX as RTC_INDEX
from devices.rtc import PORTS as RTC_PORTS
from devices.rtc import Rtc
from devices.serial import PORTS as SERIAL_PORTS
from devices.serial import Register as SerialRegister
from devices.serial import Serial
from firmware.acpi import AcpiConfig
from pyvmm.iomap import IoMap
from pyvmm.loop import Loop

COM_PORTS = ((0x3F8, 4), (0x2F8, 3))
"""(first port, interrupt line) of the console and of the agent."""

COALESCED = (*(base for base, _ in COM_PORTS), RTC_BASE + RTC_INDEX)
"""Ports whose writes may wait in KVM for the next exit: the serial ports' data, and the clock's index, which matters
only once the data port is used. (QEMU does so with the latter, too.)
"""


class Board:
    """The devices on ports. `irq(line, level)` drives an interrupt line, `reset(reason)` and `power_off()` are what
    the guest asks for; all three are called on vCPU threads. `console` and `agent` take the serial ports' output on
    the loop's thread, or on a vCPU's when the guest writes faster than the loop turns.
    """

    def __init__(
        self,
        cpus: int,
        loop: Loop,
        *,
        irq: Callable[[int, bool], None],
        reset: Callable[[str], None],
        power_off: Callable[[], None],
        console: Callable[[bytes], None],
        agent: Callable[[bytes], None],
    ) -> None:
        self.ports = IoMap("port")
        self.mmio = IoMap("mmio")
        self.acpi = AcpiConfig.for_cpus(cpus)
        self.serials: list[Serial] = []
        for (base, line), output in zip(COM_PORTS, (console, agent), strict=True):
            port = Serial(partial(irq, line), output, later=loop.post)
            self.serials.append(port)
            self.ports.claim(base, SERIAL_PORTS, port, port.lock)
        self.pm = AcpiPm(partial(irq, self.acpi.sci), power_off)
        self.ports.claim(self.acpi.pm_base, PM_PORTS, self.pm, self.pm.lock)
        self.reset_port = ResetPort(lambda: reset("reset port"))
        self.ports.claim(RESET_PORT, 1, self.reset_port, self.reset_port.lock)
        self.keyboard = I8042(lambda: reset("keyboard controller"), irq)
        for offset in (I8042_DATA, I8042_STATUS):
            self.ports.claim(I8042_BASE + offset, 1, _Offset(self.keyboard, offset), self.keyboard.lock)
        self.rtc = Rtc()
        self.ports.claim(RTC_BASE, RTC_PORTS, self.rtc, self.rtc.lock)

    def polled(self) -> dict[int, bytearray]:
        """Ports that guests read in a loop, and their quick answers (`Vcpu.answer_polls`)."""
        return {
            base + SerialRegister.LSR: serial.idle_status
            for (base, _), serial in zip(COM_PORTS, self.serials, strict=True)
        }

    def coalesced(self, port: int, data: bytes) -> None:
        """Bytes written to one of COALESCED, one after another, which KVM had queued."""
        if port == RTC_BASE + RTC_INDEX:
            self.ports.write(port, 1, data[-1])
        for (base, _), serial in zip(COM_PORTS, self.serials, strict=True):
            if port == base:
                serial.write_many(data)

    def flush(self) -> None:
        """Hand on all that the guest has written."""
        for port in self.serials:
            port.flush()

    def reset(self) -> None:
        """Back to power-on; the time of day goes on."""
        self.flush()
        for port in self.serials:
            port.reset()
        self.pm.reset()
        self.reset_port.reset()
        self.keyboard.reset()


class _Offset:
    """One port of a device whose ports are not in a row."""

    def __init__(self, device: I8042, offset: int) -> None:
        self._device = device
        self._offset = offset

    def read(self, offset: int, size: int) -> int:
        return self._device.read(self._offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self._device.write(self._offset, size, value)
