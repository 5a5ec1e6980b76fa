"""ACPI fixed hardware and the reset register."""

from __future__ import annotations

import pytest

from pyvmm.devices import acpi_pm
from pyvmm.devices.acpi_pm import CONTROL, EVENT, TIMER, AcpiPm, ResetPort


class Machine:
    def __init__(self) -> None:
        self.now = 100.0
        self.sci: list[bool] = []
        self.off = 0
        self.resets = 0

    def power_off(self) -> None:
        self.off += 1

    def reset(self) -> None:
        self.resets += 1


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def pm(machine: Machine) -> AcpiPm:
    return AcpiPm(machine.sci.append, machine.power_off, s5_type=5, clock=lambda: machine.now)


def test_sleep_type_5_powers_off(pm: AcpiPm, machine: Machine) -> None:
    pm.write(CONTROL, 2, 5 << 10)
    assert machine.off == 0, "no SLP_EN yet"
    pm.write(CONTROL, 2, 5 << 10 | acpi_pm.SLEEP_ENABLE)
    assert machine.off == 1
    assert pm.read(CONTROL, 2) == 5 << 10 | acpi_pm.SCI_ENABLE, "SLP_EN reads 0, SCI_EN 1"


def test_other_sleep_types_do_nothing(pm: AcpiPm, machine: Machine) -> None:
    pm.write(CONTROL, 2, 1 << 10 | acpi_pm.SLEEP_ENABLE)
    assert machine.off == 0


def test_s3_is_entered_and_left_where_it_is_offered(pm: AcpiPm) -> None:
    calls: list[str] = []
    pm.rtc_alarm()
    pm.suspend, pm.wake = lambda: calls.append("suspend"), lambda: calls.append("wake")
    pm.rtc_alarm()
    assert calls == [], "awake"
    for event in (pm.rtc_alarm, pm.press_power_button):
        pm.write(CONTROL, 2, acpi_pm.S3_SLEEP_TYPE << 10 | acpi_pm.SLEEP_ENABLE)
        event()
        event()
    assert calls == ["suspend", "wake"] * 2
    assert pm.read(EVENT, 2) & acpi_pm.WAKE_STATUS
    pm.write(CONTROL, 2, acpi_pm.S3_SLEEP_TYPE << 10 | acpi_pm.SLEEP_ENABLE)
    pm.reset()
    pm.rtc_alarm()
    assert calls[-1] == "suspend", "a reset ends the sleep"


def test_the_power_button_interrupts_until_its_status_is_cleared(pm: AcpiPm, machine: Machine) -> None:
    pm.write(EVENT + 2, 2, acpi_pm.POWER_BUTTON)
    assert pm.press_power_button()
    assert pm.read(EVENT, 2) == acpi_pm.POWER_BUTTON
    pm.write(EVENT, 2, acpi_pm.POWER_BUTTON)
    assert (machine.sci, pm.read(EVENT, 2)) == ([True, False], 0)


def test_a_guest_that_did_not_enable_the_button_is_not_interrupted(pm: AcpiPm, machine: Machine) -> None:
    assert not pm.press_power_button()
    assert machine.sci == []
    pm.write(EVENT + 2, 2, acpi_pm.POWER_BUTTON)
    assert machine.sci == [True]


def test_the_clock_s_alarm_interrupts_who_sleeps_until_it(pm: AcpiPm, machine: Machine) -> None:
    pm.rtc_alarm()
    assert (machine.sci, pm.read(EVENT, 2)) == ([], acpi_pm.RTC), (
        "the status bit is set, the interrupt is not enabled"
    )
    pm.write(EVENT, 2, acpi_pm.RTC)
    pm.write(EVENT + 2, 2, acpi_pm.RTC)
    pm.rtc_alarm()
    pm.write(EVENT, 2, acpi_pm.RTC)
    assert machine.sci == [True, False]


def test_both_halves_of_the_event_block_can_be_read_at_once(pm: AcpiPm) -> None:
    pm.write(EVENT, 4, 0x01210000)
    assert pm.read(EVENT, 4) == 0x01210000
    assert pm.read(EVENT + 3, 1) == 0x01


def test_reset_drops_enables_and_the_interrupt(pm: AcpiPm, machine: Machine) -> None:
    pm.write(EVENT + 2, 2, acpi_pm.POWER_BUTTON)
    pm.press_power_button()
    pm.reset()
    assert (machine.sci, pm.read(EVENT, 4)) == ([True, False], 0)


def test_the_timer_counts_3_6_million_a_second_and_wraps(pm: AcpiPm, machine: Machine) -> None:
    assert pm.read(TIMER, 4) == 0
    machine.now += 2
    assert pm.read(TIMER, 4) == 2 * acpi_pm.TIMER_HZ
    pm.write(TIMER, 4, 0)
    machine.now += 2**32 / acpi_pm.TIMER_HZ
    assert abs(pm.read(TIMER, 4) - 2 * acpi_pm.TIMER_HZ) <= 1


def test_the_reset_register_resets_on_the_rising_edge(machine: Machine) -> None:
    port = ResetPort(machine.reset)
    for value in (0x02, 0x06):  # as Linux's reboot=pci does
        port.write(0, 1, port.read(0, 1) & ~6 | value)
    assert machine.resets == 1
    port.write(0, 1, acpi_pm.RESET_VALUE)
    assert machine.resets == 1
    port.reset()
    port.write(0, 1, acpi_pm.RESET_VALUE)
    assert machine.resets == 2
