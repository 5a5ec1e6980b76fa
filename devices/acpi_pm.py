"""ACPI's fixed hardware: the power button, the clock's alarm, the sleep register for power-off, the PM timer, and the
reset register.

Source: ACPI specification 6.5, section 4.8.3 "Fixed Hardware Registers" and 4.8.3.6 "Reset Register".

    base + 0   PM1a event: status u16 (write 1 to clear), enable u16
    base + 4   PM1a control u16: SCI_EN, SLP_TYP, SLP_EN
    base + 8   PM timer u32, 3.579545 MHz, read only

The ports and the sleep type are what the ACPI tables say (firmware/acpi.py); the machine passes them in. The machine
is in ACPI mode from the start: there is no SMI command port, SCI_EN always reads 1.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from pyvmm.trace import event
from pyvmm.trace.views import DeviceView, device_view

slept = event("acpi.sleep", "SLP_TYP {type}")
button_pressed = event("acpi.power_button", "enabled {enabled}")
reset_written = event("acpi.reset", "value {value:#x}")
device_view(DeviceView(("acpi",), "ACPI"))

EVENT, CONTROL, TIMER = 0, 4, 8

TIMER_STATUS, GLOBAL_STATUS, POWER_BUTTON, RTC = 1 << 0, 1 << 5, 1 << 8, 1 << 10
WAKE_STATUS = 1 << 15
SCI_ENABLE, SLEEP_ENABLE = 1 << 0, 1 << 13
SLEEP_TYPE_SHIFT, SLEEP_TYPE_MASK = 10, 7
TIMER_HZ = 3579545

S3_SLEEP_TYPE = 1
"""SLP_TYP of suspend to RAM, as in QEMU. Only programs that know it use it: the DSDT has no _S3."""

RESET_HARD, RESET_CPU = 1 << 1, 1 << 2
RESET_VALUE = RESET_HARD | RESET_CPU
"""The FADT's RESET_VALUE, with RESET_REG at address_map.RESET."""


class AcpiPm:
    """The PM1a blocks and the PM timer, at address_map.ACPI_PM.

    `sci(level)` drives the SCI (level-triggered); `power_off()` is called when the guest enters S5, whose SLP_TYP is
    `s5_type` (the _S5 package of the DSDT). Other sleep types are ignored: none is offered.

    `suspend()`, if it is set, is called when the guest enters S3, on its vCPU's thread; `wake()` at the next clock
    alarm or power button, from any thread.
    """

    suspend: Callable[[], None] | None = None
    wake: Callable[[], None] | None = None

    def __init__(
        self,
        sci: Callable[[bool], None],
        power_off: Callable[[], None],
        *,
        s5_type: int = 5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lock = threading.RLock()
        self._sci = sci
        self._power_off = power_off
        self._s5_type = s5_type
        self._clock = clock
        self._started = clock()
        self._level = False
        self.reset()

    def reset(self) -> None:
        """Return to power-on state; the timer runs on."""
        with self.lock:
            self._status = self._enable = 0
            self._control = SCI_ENABLE
            self._asleep = False
            self._update()

    def press_power_button(self) -> bool:
        """Press the power button (`system_powerdown`), from any thread. Return whether its event is enabled."""
        with self.lock:
            enabled = bool(self._enable & POWER_BUTTON)
            if button_pressed.on:
                button_pressed(enabled)
            self._status |= POWER_BUTTON
            self._wake_up()
            self._update()
        return enabled

    def rtc_alarm(self) -> None:
        """Handle the CMOS clock's rising line, from any thread. Linux enables this event only while suspended."""
        with self.lock:
            self._status |= RTC
            self._wake_up()
            self._update()

    def read(self, offset: int, size: int) -> int:
        """Read any aligned or unaligned part of the block."""
        if offset >= TIMER:
            ticks = int((self._clock() - self._started) * TIMER_HZ) & 0xFFFFFFFF
            block = ticks.to_bytes(4, "little")
            return int.from_bytes(block[offset - TIMER : offset - TIMER + size], "little")
        registers = self._status | self._enable << 16 | self._control << 32
        return registers >> 8 * offset & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Write bytes of the block; status bits are cleared by writing ones, the timer ignores writes."""
        for position, byte in enumerate(value.to_bytes(8, "little")[:size], offset):
            shift = position % 2 * 8
            mask, part = 0xFF << shift, byte << shift
            match position // 2:
                case 0:
                    self._status &= ~part
                case 1:
                    self._enable = self._enable & ~mask | part
                case 2:
                    self._control = self._control & ~mask | part
        self._update()
        if self._control & SLEEP_ENABLE:
            self._control &= ~SLEEP_ENABLE  # write only
            kind = self._control >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK
            if slept.on:
                slept(kind)
            if kind == self._s5_type:
                self._power_off()
            elif kind == S3_SLEEP_TYPE and self.suspend is not None:
                self._asleep = True
                self.suspend()
        self._control |= SCI_ENABLE

    def _wake_up(self) -> None:
        if self._asleep and self.wake is not None:
            self._asleep = False
            self._status |= WAKE_STATUS
            self.wake()

    def _update(self) -> None:
        level = bool(self._status & self._enable & (POWER_BUTTON | RTC))
        if level != self._level:
            self._level = level
            self._sci(level)


class ResetPort:
    """Reset control of PC chipsets, one byte at 0xcf9: RESET_CPU going from 0 to 1 resets the machine."""

    def __init__(self, reset_machine: Callable[[], None]) -> None:
        self.lock = threading.RLock()
        self._reset_machine = reset_machine
        self._value = 0

    def reset(self) -> None:
        self._value = 0

    def read(self, offset: int, size: int) -> int:
        return self._value

    def write(self, offset: int, size: int, value: int) -> None:
        """Store the value; a rising RESET_CPU bit resets the machine."""
        rising = value & RESET_CPU and not self._value & RESET_CPU
        if reset_written.on:
            reset_written(value)
        self._value = value & (RESET_HARD | RESET_CPU)
        if rising:
            self._reset_machine()
