"""A guest's last words."""

from __future__ import annotations

import pytest

from pyvmm.hyperv.crash import CrashRegisters, CrashReport
from pyvmm.hyperv.tlfs import Msr
from pyvmm.memory import GuestMemory

NOTIFY, MESSAGE = 1 << 63, 1 << 62
TEXT = b"<1>[    3.1] BUG: kernel NULL\n<0>[    3.2] Kernel panic - not syncing: sysrq triggered crash\n"


def report(memory: GuestMemory, control: int, *parameters: int) -> CrashReport | None:
    registers = CrashRegisters()
    for n, value in enumerate(parameters):
        assert registers.write(Msr.CRASH_P0 + n, value, memory) is None
    return registers.write(Msr.CRASH_CTL, control, memory)


def test_the_text_is_read_from_the_guest_s_page(memory: GuestMemory) -> None:
    memory.write(0x1000, TEXT)
    made = report(memory, NOTIFY | MESSAGE, 1, 2, 3, 0x1000, len(TEXT))
    assert made is not None
    assert made.text == TEXT.decode().rstrip()
    assert made.parameters == (1, 2, 3, 0x1000, len(TEXT))


def test_the_summary_is_the_first_line_that_says_what_happened() -> None:
    assert CrashReport((0,) * 5, TEXT.decode()).summary() == "BUG: kernel NULL"
    assert CrashReport((0,) * 5, TEXT.decode().splitlines()[1]).summary().startswith("Kernel panic - not syncing")


def test_without_a_text_the_registers_speak(memory: GuestMemory) -> None:
    made = report(memory, NOTIFY, 0xE, 0, 0xFFFFFFFF81000000, 7, 8)
    assert made is not None
    assert made.summary() == "error 0xe, rip 0xffffffff81000000, rax 0x7, rsp 0x8"


@pytest.mark.parametrize(("gpa", "size"), [(0x20000, 10), (1 << 63, 4096), (0x1FFFF, 2)])
def test_a_text_out_of_reach_is_said_to_be(memory: GuestMemory, gpa: int, size: int) -> None:
    made = report(memory, NOTIFY | MESSAGE, 0, 0, 0, gpa, size)
    assert made is not None
    assert "out of reach" in made.text


def test_a_text_is_a_page_at_most(memory: GuestMemory) -> None:
    memory.write(0x1000, b"x" * 0x2000)
    made = report(memory, NOTIFY | MESSAGE, 0, 0, 0, 0x1000, 1 << 40)
    assert made is not None
    assert len(made.text) == 4096


def test_bytes_that_are_no_text_do_not_matter(memory: GuestMemory) -> None:
    memory.write(0x1000, b"\xff\xfe panic")
    made = report(memory, NOTIFY | MESSAGE, 0, 0, 0, 0x1000, 8)
    assert made is not None
    assert made.summary()


def test_without_the_notify_bit_nothing_happens(memory: GuestMemory) -> None:
    assert report(memory, MESSAGE, 1, 2, 3, 4, 5) is None


def test_the_registers_read_back_and_the_control_shows_what_is_supported(memory: GuestMemory) -> None:
    registers = CrashRegisters()
    registers.write(Msr.CRASH_P4, 7, memory)
    assert registers.read(Msr.CRASH_P4) == 7
    assert registers.read(Msr.CRASH_CTL) == NOTIFY | MESSAGE
