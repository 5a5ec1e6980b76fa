"""A serial port's registers shown in memory: always what a read of the port would give."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.devices.serial.uart import FIFO_SIZE, Register, Serial
from pyvmm.devices.serial.window import AGENT, CONSOLE, SIZE, Window

SHOWN = [register for register in Register if register != Register.DATA]

Step = tuple[str, int, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["write", "read", "receive", "break", "many", "reset"]),
        st.integers(0, 7),
        st.integers(0, 255),
    )
)


def made() -> tuple[Serial, memoryview, list[bool]]:
    page = memoryview(bytearray(4096))
    levels: list[bool] = []
    return Serial(levels.append, lambda data: None, page=page), page, levels


def shown(page: memoryview, register: int) -> int:
    return page[CONSOLE.base + register - CONSOLE.page]


def shown_early(page: memoryview, register: int) -> int:
    return page[CONSOLE.early + register - CONSOLE.page]


def do(port: Serial, step: Step) -> None:
    kind, register, value = step
    match kind:
        case "write":
            port.write(register, 1, value)
        case "read":
            port.read(register, 1)
        case "receive":
            port.receive(bytes([value]))
        case "break":
            port.send_break()
        case "many":
            port.write_many(bytes(value))
        case "reset":
            port.reset()


@pytest.mark.parametrize("window", [CONSOLE, AGENT])
def test_the_port_straddles_two_pages_and_the_early_one_does_not(window: Window) -> None:
    assert window.page % 4096 == 0
    assert window.base + Register.DATA == window.page - 1
    assert window.early // 4096 == (window.early + SIZE - 1) // 4096 == window.page // 4096


def test_no_port_s_rbr_is_in_another_s_page() -> None:
    assert AGENT.base // 4096 != CONSOLE.page // 4096


@given(STEPS)
def test_the_page_shows_what_a_read_gives_and_reading_changes_nothing(steps: list[Step]) -> None:
    port, page, _ = made()
    for step in steps:
        do(port, step)
        before = [shown(page, register) for register in SHOWN]
        assert before == [shown_early(page, register) for register in SHOWN]
        # IIR last: on the port, for other systems' drivers, reading it takes the transmitter's interrupt.
        for register in sorted(SHOWN, key=lambda each: each == Register.IIR):
            assert shown(page, register) == port.read(register, 1)


def test_an_empty_transmitter_interrupts_until_that_is_disabled() -> None:
    port, page, levels = made()
    port.write(Register.MCR, 1, 0x0B)
    port.write(Register.IER, 1, 0x02)
    for _ in range(3):
        assert shown(page, Register.IIR) == 0x02
        port.write_many(bytes(16))
    assert levels == [True]
    port.write(Register.IER, 1, 0x00)
    assert shown(page, Register.IIR) == 0x01
    assert levels == [True, False]
    port.write(Register.IER, 1, 0x02)
    assert levels == [True, False, True]


def test_data_that_waits_shows_until_it_is_read() -> None:
    port, page, _ = made()
    port.write(Register.MCR, 1, 0x0B)
    assert shown(page, Register.LSR) == 0x60
    port.receive(b"x")
    assert shown(page, Register.LSR) == 0x61
    assert port.read(Register.DATA, 1) == ord("x")
    assert shown(page, Register.LSR) == 0x60


def test_a_break_interrupts_until_its_byte_is_read() -> None:
    port, page, levels = made()
    port.write(Register.MCR, 1, 0x0B)
    port.write(Register.IER, 1, 0x05)
    port.send_break()
    assert shown(page, Register.LSR) == 0x71
    assert levels == [True]
    assert port.read(Register.DATA, 1) == 0
    assert shown(page, Register.LSR) == 0x60
    assert levels == [True, False]


def test_an_overrun_in_loopback_shows_until_a_byte_is_read() -> None:
    port, page, _ = made()
    port.write(Register.IIR, 1, 0x01)
    port.write(Register.MCR, 1, 0x10)
    for _ in range(FIFO_SIZE + 1):
        port.write(Register.DATA, 1, 0xAA)
    assert shown(page, Register.LSR) & 2
    assert port.read(Register.LSR, 1) & 2
    port.read(Register.DATA, 1)
    assert not shown(page, Register.LSR) & 2


def test_changed_lines_raise_no_interrupt_that_cannot_be_cleared() -> None:
    """Linux turns the lines round when it looks for the port, and asks for modem interrupts long after."""
    port, page, levels = made()
    port.write(Register.MCR, 1, 0x1A)
    assert shown(page, Register.MSR) == 0x90
    port.write(Register.MCR, 1, 0x0B)
    port.write(Register.IER, 1, 0x0D)
    assert shown(page, Register.MSR) == 0xB0
    assert levels == []
