"""The UART as Linux's 8250 driver probes and uses it."""

from __future__ import annotations

import pytest

from pyvmm.devices.serial import uart as serial
from pyvmm.devices.serial.uart import Register, Serial


class Wires:
    """Records what the port does to the outside."""

    def __init__(self) -> None:
        self.level = False
        self.edges = 0
        self.sent = b""

    def irq(self, level: bool) -> None:
        assert level != self.level
        self.level = level
        self.edges += level

    def output(self, data: bytes) -> None:
        self.sent += data


@pytest.fixture
def wires() -> Wires:
    return Wires()


@pytest.fixture
def port(wires: Wires) -> Serial:
    return Serial(wires.irq, wires.output)


def open_as_linux_does(port: Serial) -> None:
    """What serial8250_do_startup and the line settings leave behind."""
    put(port, Register.IIR, 0x01)
    put(port, Register.IIR, 0x07)
    for register in (Register.LSR, Register.DATA, Register.IIR, Register.MSR):
        get(port, register)
    put(port, Register.IIR, 0x81)
    put(port, Register.IER, 0x05)
    put(port, Register.MCR, 0x0B)


def get(port: Serial, register: int) -> int:
    return port.read(register, 1)


def put(port: Serial, register: int, value: int) -> None:
    port.write(register, 1, value)


@pytest.fixture
def suppress_ier_writes() -> list[bool]:
    return []


@pytest.fixture
def console(wires: Wires, suppress_ier_writes: list[bool]) -> Serial:
    """A port that prints a kernel's messages: no process has opened it."""
    port = Serial(wires.irq, wires.output, suppress_ier_writes=suppress_ier_writes.append)
    for _ in range(serial.IER_SUPPRESS_AFTER):
        put(port, Register.IER, 0)
    assert suppress_ier_writes == [True]
    return port


@pytest.mark.parametrize(
    ("register", "value"),
    [(Register.IER, serial.IER_RECEIVE), (Register.LCR, serial.LCR_DLAB)],
    ids=["an interrupt", "the divisor"],
)
def test_writes_to_ier_are_passed_on_again_before_they_matter(console, suppress_ier_writes, register, value) -> None:
    put(console, Register.IER, 0)
    put(console, Register.LCR, 3)
    put(console, Register.IER, 0x40)  # UUE, which is not there
    assert suppress_ier_writes == [True], "said once"
    put(console, register, value)
    put(console, register, value)
    assert suppress_ier_writes == [True, False]
    put(console, Register.LCR, 3)
    put(console, Register.IER, 0)
    for _ in range(serial.IER_SUPPRESS_AFTER):
        put(console, Register.IER, 0)
    assert suppress_ier_writes == [True, False, True]


def test_a_reset_port_hears_zeroes(console, suppress_ier_writes) -> None:
    console.reset()
    assert suppress_ier_writes == [True, False]


def test_the_divisor_s_zeroes_are_no_console_s_lines(wires: Wires, suppress_ier_writes) -> None:
    port = Serial(wires.irq, wires.output, suppress_ier_writes=suppress_ier_writes.append)
    put(port, Register.LCR, serial.LCR_DLAB)
    for _ in range(9):
        put(port, Register.IER, 0)
    assert suppress_ier_writes == []


def test_linux_autoconfig_finds_a_16550a(port: Serial) -> None:
    put(port, Register.IER, 0)
    assert get(port, Register.IER) & 0x0F == 0
    put(port, Register.IER, 0x4F)
    assert get(port, Register.IER) == 0x0F
    put(port, Register.IER, 0)
    put(port, Register.MCR, 0x1A)
    assert get(port, Register.MSR) & 0xF0 == 0x90
    put(port, Register.MCR, 0)
    put(port, Register.IIR, 0x01)
    assert get(port, Register.IIR) >> 6 == 3
    put(port, Register.LCR, 0xBF)
    assert get(port, Register.IIR) != 0, "an EFR that reads 0 would be a 16650"
    put(port, Register.LCR, 0)
    put(port, Register.IIR, 0x21)
    assert get(port, Register.IIR) & 0x20 == 0, "a 64-byte FIFO would be a 16750"


def test_enabling_the_transmit_interrupt_raises_it_each_time(port: Serial) -> None:
    put(port, Register.IER, 2)
    assert get(port, Register.IIR) & 0x0F == serial.IIR_TRANSMIT
    assert get(port, Register.IIR) & 0x0F == serial.IIR_NONE
    put(port, Register.IER, 0)
    put(port, Register.IER, 2)
    assert get(port, Register.IIR) & 0x0F == serial.IIR_TRANSMIT


def test_a_written_byte_is_sent_and_the_transmitter_is_empty_again(port: Serial, wires: Wires) -> None:
    open_as_linux_does(port)
    put(port, Register.IER, 7)
    get(port, Register.IIR)
    assert not wires.level
    put(port, Register.DATA, 0x41)
    assert (wires.sent, wires.level, get(port, Register.LSR) & 0x60) == (b"A", True, 0x60)


def test_interrupts_pass_only_while_out2_is_set(port: Serial, wires: Wires) -> None:
    put(port, Register.IER, 2)
    assert not wires.level
    put(port, Register.MCR, serial.MCR_OUT2)
    assert wires.level
    put(port, Register.MCR, serial.MCR_OUT2 | serial.MCR_LOOP)
    assert not wires.level


def test_bytes_queued_before_the_port_is_open_reach_its_reader(port: Serial) -> None:
    port.receive(b"typed early")
    open_as_linux_does(port)
    assert bytes(drain(port)) == b"typed early"


def drain(port: Serial) -> list[int]:
    data = []
    while get(port, Register.LSR) & serial.LSR_READY:
        data.append(get(port, Register.DATA))
    return data


def test_a_long_input_arrives_whole_and_in_order(port: Serial, wires: Wires) -> None:
    open_as_linux_does(port)
    text = bytes(range(256)) * 8
    assert port.receive(text) == len(text)
    assert wires.level
    assert bytes(drain(port)) == text
    assert not wires.level


def test_a_full_queue_takes_no_more_and_says_so(port: Serial) -> None:
    assert port.receive(bytes(serial.RECEIVE_LIMIT + 5)) == serial.RECEIVE_LIMIT
    assert port.receive(b"x") == 0


def test_few_bytes_are_a_timeout_and_many_a_full_fifo(port: Serial) -> None:
    open_as_linux_does(port)  # trigger level 8
    port.receive(b"abc")
    assert get(port, Register.IIR) == 0xC0 | serial.IIR_TIMEOUT
    port.receive(b"defgh")
    assert get(port, Register.IIR) == 0xC0 | serial.IIR_RECEIVE


def test_line_status_comes_before_data_before_transmitter_before_modem(port: Serial) -> None:
    put(port, Register.IIR, 1)
    put(port, Register.MCR, 0x10)
    put(port, Register.MCR, 0x02)
    port.send_break()
    put(port, Register.IER, 0x0F)
    seen = [get(port, Register.IIR) & 0x0F]
    get(port, Register.LSR)
    seen.append(get(port, Register.IIR) & 0x0F)
    get(port, Register.DATA)
    seen += [get(port, Register.IIR) & 0x0F, get(port, Register.IIR) & 0x0F]
    get(port, Register.MSR)
    seen.append(get(port, Register.IIR) & 0x0F)
    expected = [serial.IIR_LINE, serial.IIR_RECEIVE, serial.IIR_TRANSMIT, serial.IIR_MODEM, serial.IIR_NONE]
    assert seen == expected


def test_a_break_shows_at_its_place_in_the_stream(port: Serial) -> None:
    open_as_linux_does(port)
    port.receive(b"a")
    port.send_break()
    port.receive(b"t")
    seen = []
    while (status := get(port, Register.LSR)) & serial.LSR_READY:
        seen.append((bool(status & serial.LSR_BREAK), get(port, Register.DATA)))
    assert seen == [(False, 0x61), (True, 0), (False, 0x74)]


def test_loopback_keeps_the_data_inside(port: Serial, wires: Wires) -> None:
    put(port, Register.IIR, 1)
    put(port, Register.MCR, 0x10)
    port.write_many(b"loop")
    assert bytes(drain(port)) == b"loop"
    assert wires.sent == b""


def test_the_divisor_is_kept_apart_from_data(port: Serial, wires: Wires) -> None:
    put(port, Register.LCR, 0x83)
    put(port, Register.DATA, 1)
    put(port, Register.IER, 0)
    assert (get(port, Register.DATA), get(port, Register.IER)) == (1, 0)
    put(port, Register.LCR, 0x03)
    assert wires.sent == b""


def test_reset_drops_the_interrupt_and_keeps_the_hosts_queue(port: Serial, wires: Wires) -> None:
    open_as_linux_does(port)
    port.receive(bytes(100))
    port.reset()
    assert not wires.level
    assert (get(port, Register.MCR), port.queued) == (0, 84)


def test_the_quick_status_is_what_a_read_gives_and_only_while_the_read_would_change_nothing(port: Serial) -> None:
    assert port.idle_status[0] == get(port, Register.LSR)
    open_as_linux_does(port)
    port.receive(b"x")
    assert port.idle_status[0] == 0
    get(port, Register.DATA)
    assert port.idle_status[0] == get(port, Register.LSR)
    put(port, Register.IER, 0x07)
    assert port.idle_status[0] == 0, "bytes held back may owe the guest an interrupt"
    port.reset()
    assert port.idle_status[0] == get(port, Register.LSR)


def test_breaks_wait_within_the_limit_of_other_input(port: Serial) -> None:
    port.receive(bytes(serial.RECEIVE_LIMIT))
    for _ in range(100):
        port.send_break()
    assert port.queued == serial.RECEIVE_LIMIT


def test_a_port_that_is_held_does_not_interrupt_for_its_transmitter(port: Serial, wires: Wires) -> None:
    open_as_linux_does(port)
    port.hold(True)
    put(port, Register.IER, serial.IER_TRANSMIT | serial.IER_RECEIVE)
    assert not wires.level
    assert get(port, Register.IIR) & 0x0F == serial.IIR_NONE
    assert get(port, Register.LSR) & serial.LSR_THR_EMPTY, "a kernel that polls does not wait"
    port.receive(b"x")
    assert wires.level, "input comes all the same"
    assert get(port, Register.DATA) == ord("x")
    port.hold(False)
    assert wires.level
    assert get(port, Register.IIR) & 0x0F == serial.IIR_TRANSMIT
