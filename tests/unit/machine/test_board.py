"""What KVM holds back of the guest's port writes, and where it goes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyvmm.devices.acpi_pm import RTC
from pyvmm.devices.rtc.clock import (
    ALARM_ANY,
    ALARM_HOURS,
    ALARM_MINUTES,
    ALARM_SECONDS,
    B_24_HOURS,
    D_VALID,
    REG_B,
    REG_C,
    REG_D,
)
from pyvmm.devices.rtc.interrupts import ALARM
from pyvmm.devices.serial.uart import IER_RECEIVE, IER_SUPPRESS_AFTER, Register
from pyvmm.devices.serial.window import AGENT, CONSOLE
from pyvmm.loop import Loop
from pyvmm.machine.board import COALESCED, COALESCED_MMIO, Board


@pytest.fixture
def console() -> list[bytes]:
    return []


@pytest.fixture
def suppress_ier_writes() -> list[tuple[int, bool]]:
    return []


@pytest.fixture
def lines() -> list[tuple[int, bool]]:
    return []


@pytest.fixture
def board(
    console: list[bytes], suppress_ier_writes: list[tuple[int, bool]], lines: list[tuple[int, bool]]
) -> Iterator[Board]:
    loop = Loop()
    yield Board(
        1,
        loop,
        irq=lambda line, level: lines.append((line, level)),
        suppress_ier_writes=lambda gpa, on: suppress_ier_writes.append((gpa, on)),
        reset=lambda reason: None,
        power_off=lambda: None,
        console=console.append,
        agent=lambda data: None,
    )
    loop.close()


def test_serial_output_that_waited_reaches_the_console_in_order(board: Board, console: list[bytes]) -> None:
    board.coalesced(0x3F8, b"hel")
    board.coalesced(0x3F8, b"lo")
    board.flush()
    assert b"".join(console) == b"hello"


def test_of_the_clocks_indices_that_waited_the_last_counts(board: Board) -> None:
    board.coalesced(0x70, bytes([REG_B, REG_D]))
    assert board.ports.read(0x71, 1) == D_VALID


def test_the_clocks_interrupt_also_wakes_a_sleeping_guest(board: Board, lines: list[tuple[int, bool]]) -> None:
    def clock(index: int, value: int) -> None:
        board.ports.write(0x70, 1, index)
        board.ports.write(0x71, 1, value)

    board.ports.write(board.acpi.pm_base + 2, 2, RTC)
    for index in (ALARM_HOURS, ALARM_MINUTES, ALARM_SECONDS):
        clock(index, ALARM_ANY)
    lines.clear()
    clock(REG_B, B_24_HOURS | ALARM)
    board.rtc._interrupts._last = 0.0  # long ago: a second has passed since
    board.ports.write(0x70, 1, REG_C)
    assert board.ports.read(0x71, 1) & ALARM
    assert lines == [(8, True), (board.acpi.sci, True), (8, False)]
    lines.clear()
    board.reset()
    assert lines == [(board.acpi.sci, False)]


def test_nothing_else_waits() -> None:
    assert COALESCED == (0x3F8, 0x2F8, 0x70)
    assert (CONSOLE.base, CONSOLE.early, AGENT.base, AGENT.early) == COALESCED_MMIO


def test_the_console_is_one_port_with_three_doors(board: Board, console: list[bytes]) -> None:
    board.coalesced(CONSOLE.early, b"ear")
    board.mmio.write(CONSOLE.early, 1, ord("l"))
    board.coalesced(0x3F8, b"y ")
    board.coalesced(CONSOLE.base, b"lat")
    board.mmio.write(CONSOLE.base, 1, ord("e"))
    board.flush()
    assert b"".join(console) == b"early late"
    board.mmio.write(CONSOLE.base + Register.SCRATCH, 1, 0x5A)
    assert board.ports.read(0x3F8 + Register.SCRATCH, 1) == 0x5A
    assert board.mmio.read(CONSOLE.early + Register.SCRATCH, 1) == 0x5A
    assert list(board.readonly()) == [CONSOLE.page, AGENT.page]
    assert board.readonly()[CONSOLE.page].view[CONSOLE.base + Register.SCRATCH - CONSOLE.page] == 0x5A
    assert board.acpi.com_windows == (CONSOLE.base, AGENT.base)


def test_zeroes_need_not_be_heard_at_the_window_s_interrupt_register(board: Board, suppress_ier_writes) -> None:
    for _ in range(IER_SUPPRESS_AFTER):
        board.mmio.write(CONSOLE.base + Register.IER, 1, 0)
    assert suppress_ier_writes == [(CONSOLE.base + Register.IER, True)]
    board.ports.write(0x3F8 + Register.IER, 1, IER_RECEIVE)
    assert suppress_ier_writes[1:] == [(CONSOLE.base + Register.IER, False)]


def test_a_board_closes_twice_and_its_console_may_still_be_written(board: Board, console: list[bytes]) -> None:
    board.coalesced(0x3F8, b"end")
    board.close()
    board.close()
    assert console == [b"end"]
    board.serials[0].receive(b"typed too late")
