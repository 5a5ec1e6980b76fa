"""The assembler for the guest's little programs: instructions as GNU as encodes them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pyvmm.images.assembler import Assembler, At, Local, Value


def code(write: Callable[[Assembler], object]) -> str:
    made = Assembler()
    write(made)
    return made.build().hex()


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (lambda a: a.move("rax", "r13"), "4c89e8"),  # mov rax, r13
        (lambda a: a.move("r13", "rax"), "4989c5"),  # mov r13, rax
        (lambda a: a.move("rdi", 60), "bf3c000000"),  # mov edi, 60
        (lambda a: a.move("r10", 7), "41ba07000000"),  # mov r10d, 7
        (lambda a: a.move("rdx", -1), "48c7c2ffffffff"),  # mov rdx, -1
        (lambda a: a.move("rsi", Local(64)), "488db540000000"),  # lea rsi, [rbp + 64]
        (lambda a: a.move("rax", Value(8)), "488b8508000000"),  # mov rax, [rbp + 8]
        (lambda a: a.move("rax", Value(8, 4)), "408b8508000000"),  # mov eax, [rbp + 8]
        (lambda a: a.move("rax", Value(8, 2)), "480fb78508000000"),  # movzx rax, word ptr [rbp + 8]
        (lambda a: a.load("rcx", "rdi", 0, 1), "480fb68f00000000"),  # movzx rcx, byte ptr [rdi]
        (lambda a: a.load("rax", "rsp", 0), "488b842400000000"),  # mov rax, [rsp]
        (lambda a: a.store(16, "r9", 4), "44898d10000000"),  # mov [rbp + 16], r9d
        (lambda a: a.store(0, "rax", 2), "6640898500000000"),  # mov [rbp], ax
        (lambda a: a.store(0, "rsi", 1), "4088b500000000"),  # mov [rbp], sil
        (lambda a: a.address("r15", "rsp", 8), "4c8dbc2408000000"),  # lea r15, [rsp + 8]
        (lambda a: a.add("r14", "r15"), "4d01fe"),  # add r14, r15
        (lambda a: a.subtract("rdx", 16), "4881ea10000000"),  # sub rdx, 16
        (lambda a: a.both("rax", 1), "4881e001000000"),  # and rax, 1
        (lambda a: a.compare("r12", 0), "4981fc00000000"),  # cmp r12, 0
        (lambda a: a.shift_left("r14", 3), "49c1e603"),  # shl r14, 3
        (lambda a: a.negate("rax"), "48f7d8"),  # neg rax
        (lambda a: a.syscall(60, 0), "bf00000000b83c0000000f05"),
        (lambda a: a.syscall(1, "rdi"), "b8010000000f05"),
    ],
)
def test_instructions(write: Callable[[Assembler], object], expected: str) -> None:
    assert code(write) == expected


def test_labels_are_distances_in_both_directions() -> None:
    a = Assembler()
    a.label("begin")
    a.jump("end")
    a.jump("begin", "ne")
    a.move("rdi", At("text"))
    a.call("begin")
    a.label("end")
    a.back()
    a.data("text", b"x\0")
    assert a.build().hex() == "e9120000000f85f5ffffff488d3d06000000e8e9ffffffc37800"
    with pytest.raises(AssertionError, match="twice"):
        a.label("end")
