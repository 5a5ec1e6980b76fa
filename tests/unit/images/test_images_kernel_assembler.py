"""The assembler for guests without an operating system: instructions as a disassembler reads them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pyvmm.images.kernel_assembler import KernelAssembler

capstone = pytest.importorskip("capstone")


def read_back(write: Callable[[KernelAssembler], object]) -> list[str]:
    a = KernelAssembler()
    write(a)
    code = a.build()
    found = list(capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64).disasm(code, 0))
    assert sum(len(each.bytes) for each in found) == len(code)
    return [f"{each.mnemonic} {each.op_str}".strip() for each in found]


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (lambda a: a.move("rax", 1 << 40), ["movabs rax, 0x10000000000"]),
        (lambda a: a.move("r9", 0x8100000000000000), ["movabs r9, 0x8100000000000000"]),
        (lambda a: a.move("r9", 7), ["mov r9d, 7"]),
        (lambda a: a.move("rax", -1), ["mov rax, 0xffffffffffffffff"]),
        (lambda a: a.shift_right("r10", 12), ["shr r10, 0xc"]),
        (lambda a: a.either("rax", "rdx"), ["or rax, rdx"]),
        (lambda a: a.copy_bytes(), ["rep movsb byte ptr [rdi], byte ptr [rsi]"]),
        (lambda a: a.out(0x10), ["out 0x10, al"]),
        (lambda a: a.out(0x10, 4), ["out 0x10, eax"]),
        (lambda a: a.out(0x3F8), ["mov edx, 0x3f8", "out dx, al"]),
        (lambda a: a.out(0x604, 2), ["mov edx, 0x604", "out dx, ax"]),
        (lambda a: a.read_port(0x10), ["in al, 0x10"]),
        (lambda a: a.read_port(0xCF8, 4), ["mov edx, 0xcf8", "in eax, dx"]),
        (lambda a: a.cpuid(0x40000000), ["mov eax, 0x40000000", "mov ecx, 0", "cpuid"]),
        (lambda a: a.read_msr(0x1B), ["mov ecx, 0x1b", "rdmsr", "shl rdx, 0x20", "or rax, rdx"]),
        (lambda a: a.write_msr(1, 2 << 32 | 3), ["mov ecx, 1", "mov eax, 3", "mov edx, 2", "wrmsr"]),
        (lambda a: a.call_address("rax"), ["call rax"]),
        (lambda a: a.call_address("r12"), ["call r12"]),
        (lambda a: a.barrier(), ["mfence"]),
        (lambda a: a.halt(), ["hlt"]),
    ],
)
def test_instructions(write: Callable[[KernelAssembler], object], expected: list[str]) -> None:
    assert read_back(write) == expected
