"""The keyboard controller with nothing plugged in."""

from __future__ import annotations

import pytest

from pyvmm.devices import i8042
from pyvmm.devices.i8042 import DATA, I8042, STATUS


class Machine:
    def __init__(self) -> None:
        self.resets = 0
        self.lines: list[tuple[int, bool]] = []

    def reset(self) -> None:
        self.resets += 1


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def controller(machine: Machine) -> I8042:
    return I8042(machine.reset, lambda line, level: machine.lines.append((line, level)))


def answer(controller: I8042) -> int | None:
    if not controller.read(STATUS, 1) & i8042.STATUS_OUTPUT_FULL:
        return None
    return controller.read(DATA, 1)


def test_pulsing_the_reset_line_resets_the_machine(controller: I8042, machine: Machine) -> None:
    controller.write(STATUS, 1, i8042.Command.PULSE_RESET)
    assert machine.resets == 1
    controller.write(STATUS, 1, 0xFF)
    assert machine.resets == 1


@pytest.mark.parametrize(("command", "expected"), [(0xAA, 0x55), (0xAB, 0), (0xA9, 0), (0x20, 0x44), (0xD0, 0x03)])
def test_probing_commands_are_answered(controller: I8042, command: int, expected: int) -> None:
    assert answer(controller) is None
    controller.write(STATUS, 1, command)
    assert answer(controller) == expected
    assert answer(controller) is None


def test_the_configuration_byte_is_kept(controller: I8042) -> None:
    controller.write(STATUS, 1, 0x60)
    controller.write(DATA, 1, 0x35)
    controller.write(STATUS, 1, 0x20)
    assert answer(controller) == 0x35


def test_linux_aux_loop_test_gets_its_byte_back_marked_as_aux(controller: I8042) -> None:
    controller.write(STATUS, 1, 0xD3)
    controller.write(DATA, 1, 0x5A)
    assert controller.read(STATUS, 1) & i8042.STATUS_AUX
    assert answer(controller) == 0x5A


@pytest.mark.parametrize("prefix", [[], [0xD4]])
def test_a_byte_for_a_missing_device_times_out_at_once(controller: I8042, prefix: list[int]) -> None:
    for command in prefix:
        controller.write(STATUS, 1, command)
    controller.write(DATA, 1, 0xFF)
    assert controller.read(STATUS, 1) & i8042.STATUS_TIMEOUT
    assert answer(controller) == 0xFE


def test_interrupts_follow_the_output_buffer(controller: I8042, machine: Machine) -> None:
    controller.write(STATUS, 1, 0x60)
    controller.write(DATA, 1, i8042.CONFIG_KEYBOARD_IRQ)
    controller.write(DATA, 1, 0xF2)
    answer(controller)
    assert machine.lines == [(1, True), (1, False)]


def test_a_guest_that_never_reads_costs_nothing(controller: I8042) -> None:
    for _ in range(1000):
        controller.write(STATUS, 1, 0xAA)
    count = 0
    while answer(controller) is not None:
        count += 1
    assert count == i8042.ANSWER_LIMIT
