"""The i8042 keyboard controller, without a keyboard: guests use it to reset the machine.

Source: IBM PS/2 Hardware Interface Technical Reference, keyboard controller; Linux drivers/input/serio/i8042.c for
what probes it and arch/x86/kernel/reboot.c for what uses it.

    0x60  data: answers, and bytes for the (missing) keyboard
    0x64  read: status; write: command. 0xfe pulses the reset line: how Linux reboots a PC (reboot=k)

A guest whose ACPI tables say that there is no 8042 never probes it. One that does finds a controller that passes its
tests at once, and ports with no device connected: each byte for a device is answered with 0xfe and the time-out bit,
so that no probe waits for a reply. Without a controller (0xff everywhere) Linux would poll for half a second.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from enum import IntEnum

from pyvmm.address_map import KEYBOARD_LINE, MOUSE_LINE
from pyvmm.trace import event
from pyvmm.trace.views import DeviceView, device_view

command_written = event("i8042.command", "command {command:#x}")
device_view(DeviceView(("i8042",), "i8042"))

DATA, STATUS = 0, 4
"""Offsets of two ports of one byte. Claim each separately, with the device's lock: 0x61 is the speaker's."""

STATUS_OUTPUT_FULL, STATUS_SYSTEM, STATUS_COMMAND, STATUS_UNLOCKED = 0x01, 0x04, 0x08, 0x10
STATUS_AUX, STATUS_TIMEOUT = 0x20, 0x40


class Command(IntEnum):
    """Commands, written to STATUS. From 0xf0 on the low four bits select output lines to pulse low, where 0."""

    READ_CONFIG = 0x20
    WRITE_CONFIG = 0x60
    DISABLE_AUX = 0xA7
    ENABLE_AUX = 0xA8
    TEST_AUX = 0xA9
    SELF_TEST = 0xAA
    TEST_KEYBOARD = 0xAB
    DISABLE_KEYBOARD = 0xAD
    ENABLE_KEYBOARD = 0xAE
    READ_OUTPUT_PORT = 0xD0
    WRITE_OUTPUT_PORT = 0xD1
    LOOP_KEYBOARD = 0xD2
    LOOP_AUX = 0xD3
    WRITE_AUX = 0xD4
    PULSE = 0xF0
    PULSE_RESET = 0xFE


CONFIG_KEYBOARD_IRQ, CONFIG_AUX_IRQ, CONFIG_SYSTEM = 0x01, 0x02, 0x04
CONFIG_KEYBOARD_OFF, CONFIG_AUX_OFF, CONFIG_TRANSLATE = 0x10, 0x20, 0x40
OUTPUT_NOT_RESET, OUTPUT_A20 = 0x01, 0x02

SELF_TEST_PASSED, PORT_TEST_PASSED, NO_DEVICE = 0x55, 0x00, 0xFE
ANSWER_LIMIT = 16
"""Limit of queued answers, for a guest that writes and never reads."""


_TAKE_ARGUMENT = {Command.WRITE_CONFIG, *range(Command.WRITE_OUTPUT_PORT, Command.WRITE_AUX + 1)}


class I8042:
    """The controller. `reset_machine` is called for a pulsed reset line; `irq(line, level)` drives its two lines."""

    def __init__(
        self, reset_machine: Callable[[], None], irq: Callable[[int, bool], None] = lambda line, level: None
    ) -> None:
        self.lock = threading.RLock()
        self._reset_machine = reset_machine
        self._irq = irq
        self._levels = {KEYBOARD_LINE: False, MOUSE_LINE: False}
        self.reset()

    def reset(self) -> None:
        """Return to the state that firmware leaves: translation on, interrupts off."""
        self._config = CONFIG_SYSTEM | CONFIG_TRANSLATE
        self._output_port = OUTPUT_NOT_RESET | OUTPUT_A20
        self._argument_of: int | None = None
        self._last_was_command = False
        self._answers: deque[tuple[int, int]] = deque(maxlen=ANSWER_LIMIT)  # (byte, status bits)
        self._update()

    def read(self, offset: int, size: int) -> int:
        """Read the next answer, or the status."""
        if offset == STATUS:
            status = STATUS_UNLOCKED | (STATUS_COMMAND if self._last_was_command else 0)
            if self._config & CONFIG_SYSTEM:
                status |= STATUS_SYSTEM
            return status | (self._answers[0][1] | STATUS_OUTPUT_FULL if self._answers else 0)
        if offset == DATA:
            value = self._answers.popleft()[0] if self._answers else 0
            self._update()
            return value
        return 0xFF

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a command, its argument, or a byte for a device."""
        value &= 0xFF
        if offset == STATUS:
            self._last_was_command = True
            self._command(value)
        elif offset == DATA:
            self._last_was_command = False
            command, self._argument_of = self._argument_of, None
            self._data(command, value)
        self._update()

    def _command(self, command: int) -> None:
        if command_written.on:
            command_written(command)
        self._argument_of = None
        match command:
            case Command.READ_CONFIG:
                self._answer(self._config)
            case _ if command in _TAKE_ARGUMENT:
                self._argument_of = command
            case Command.DISABLE_AUX:
                self._config |= CONFIG_AUX_OFF
            case Command.ENABLE_AUX:
                self._config &= ~CONFIG_AUX_OFF
            case Command.TEST_AUX | Command.TEST_KEYBOARD:
                self._answer(PORT_TEST_PASSED)
            case Command.SELF_TEST:
                self._config |= CONFIG_SYSTEM
                self._answer(SELF_TEST_PASSED)
            case Command.DISABLE_KEYBOARD:
                self._config |= CONFIG_KEYBOARD_OFF
            case Command.ENABLE_KEYBOARD:
                self._config &= ~CONFIG_KEYBOARD_OFF
            case Command.READ_OUTPUT_PORT:
                self._answer(self._output_port)
            case _ if command >= Command.PULSE and not command & OUTPUT_NOT_RESET:
                self._reset_machine()

    def _data(self, command: int | None, value: int) -> None:
        match command:
            case Command.WRITE_CONFIG:
                self._config = value
            case Command.WRITE_OUTPUT_PORT:
                self._output_port = value
                if not value & OUTPUT_NOT_RESET:
                    self._reset_machine()
            case Command.LOOP_KEYBOARD:
                self._answer(value)
            case Command.LOOP_AUX:
                self._answer(value, STATUS_AUX)
            case Command.WRITE_AUX:
                self._answer(NO_DEVICE, STATUS_AUX | STATUS_TIMEOUT)
            case _:
                self._answer(NO_DEVICE, STATUS_TIMEOUT)

    def _answer(self, value: int, status: int = 0) -> None:
        self._answers.append((value, status))

    def _update(self) -> None:
        aux = bool(self._answers and self._answers[0][1] & STATUS_AUX)
        full = bool(self._answers)
        for line, level in (
            (KEYBOARD_LINE, full and not aux and bool(self._config & CONFIG_KEYBOARD_IRQ)),
            (MOUSE_LINE, full and aux and bool(self._config & CONFIG_AUX_IRQ)),
        ):
            if level != self._levels[line]:
                self._levels[line] = level
                self._irq(line, level)
