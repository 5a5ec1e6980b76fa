"""The assembler and interpreter of seccomp programs."""

from __future__ import annotations

import pytest

from pyvmm.sandbox.bpf import ALLOW, ARCH, KILL_PROCESS, NUMBER, Program, high, interpret, low


def test_an_instruction_is_laid_out_as_struct_sock_filter() -> None:
    program = Program()
    program.load(ARCH)
    program.equal(7, false="no")
    program.give(ALLOW)
    program.label("no")
    program.give(KILL_PROCESS)
    assert program.build().hex(" ", 8) == "2000000004000000 1500000107000000 060000000000ff7f 0600000000000080"


def test_jumps_go_where_the_label_is() -> None:
    program = Program()
    program.load(NUMBER)
    program.above(10, true="big")
    program.at_least(5, false="small")
    program.give(2)
    program.label("small")
    program.give(1)
    program.label("big")
    program.give(3)
    code = program.build()
    assert [interpret(code, number) for number in (4, 5, 10, 11)] == [1, 2, 2, 3]


def test_both_halves_of_an_argument_are_reached() -> None:
    program = Program()
    program.load(high(3))
    program.equal(0x11, false="no")
    program.load(low(3))
    program.mask(0xFF)
    program.equal(0x44, false="no")
    program.give(1)
    program.label("no")
    program.give(0)
    code = program.build()
    assert interpret(code, 0, [0, 0, 0, 0x11_22223344]) == 1
    assert interpret(code, 0, [0, 0, 0, 0x12_22223344]) == 0
    assert interpret(code, 0, [0, 0, 0, 0x11_22223345]) == 0


def test_a_jump_that_is_too_far_is_our_mistake() -> None:
    program = Program()
    program.equal(0, true="end")
    for _ in range(300):
        program.load(NUMBER)
    program.label("end")
    program.give(ALLOW)
    with pytest.raises(AssertionError, match="end is 300 instructions away"):
        program.build()


def test_a_broken_program_is_reported() -> None:
    with pytest.raises(ValueError, match="unknown code"):
        interpret(b"\xff\xff" + bytes(6), 0)
    with pytest.raises(ValueError, match="without an action"):
        interpret(b"", 0)
