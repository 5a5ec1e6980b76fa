"""Programs for seccomp: a small assembler of classic BPF, and an interpreter of it for the tests.

Source: Linux include/uapi/linux/filter.h, bpf_common.h and seccomp.h; Documentation/userspace-api/seccomp_filter.rst.

The kernel runs the program at each system call over `struct seccomp_data`:

    0 nr: u32   4 arch: u32   8 instruction_pointer: u64   16 args: u64[6]

One register, the accumulator, loads 32 bits of it at a time; jumps go forward only, over at most 255 instructions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from struct import pack, pack_into, unpack_from

LOAD, AND, RETURN = 0x20, 0x54, 0x06  # BPF_LD|W|ABS, BPF_ALU|AND|K, BPF_RET|K
JUMP_EQUAL, JUMP_ABOVE, JUMP_AT_LEAST = 0x15, 0x25, 0x35  # BPF_JMP|JEQ|K, JGT, JGE

NUMBER = 0  # offsets in struct seccomp_data
ARCH = 4
DATA_SIZE = 64

ARCH_X86_64 = 0xC000003E
X32_BIT = 0x40000000
"""Set in the number of a system call of the x32 ABI, which shares the architecture with x86-64."""

KILL_PROCESS = 0x80000000
ERRNO = 0x00050000
ALLOW = 0x7FFF0000


def low(argument: int) -> int:
    """The offset of an argument's lower 32 bits."""
    return 16 + 8 * argument


def high(argument: int) -> int:
    """The offset of an argument's upper 32 bits."""
    return low(argument) + 4


@dataclass(slots=True)
class _Instruction:
    code: int
    value: int
    true: str = ""  # labels; "" goes on with the next instruction
    false: str = ""


@dataclass(slots=True)
class Program:
    """A BPF program under construction: instructions in order, with labels for forward jumps."""

    instructions: list[_Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    def label(self, name: str) -> None:
        """Name the next instruction."""
        assert name not in self.labels, name
        self.labels[name] = len(self.instructions)

    def load(self, offset: int) -> None:
        """Load 32 bits of `struct seccomp_data` into the accumulator."""
        self.instructions.append(_Instruction(LOAD, offset))

    def mask(self, bits: int) -> None:
        """Keep only these bits of the accumulator."""
        self.instructions.append(_Instruction(AND, bits))

    def equal(self, value: int, true: str = "", false: str = "") -> None:
        """Jump to `true` if the accumulator is `value`, else to `false`."""
        self.instructions.append(_Instruction(JUMP_EQUAL, value, true, false))

    def above(self, value: int, true: str = "", false: str = "") -> None:
        """Jump to `true` if the accumulator is greater than `value`, both unsigned."""
        self.instructions.append(_Instruction(JUMP_ABOVE, value, true, false))

    def at_least(self, value: int, true: str = "", false: str = "") -> None:
        """Jump to `true` if the accumulator is `value` or greater, both unsigned."""
        self.instructions.append(_Instruction(JUMP_AT_LEAST, value, true, false))

    def give(self, action: int) -> None:
        """Return `action`: ALLOW, KILL_PROCESS, or ERRNO and an error number."""
        self.instructions.append(_Instruction(RETURN, action))

    def build(self) -> bytes:
        """The program as an array of `struct sock_filter`: code u16, jt u8, jf u8, k u32."""
        return b"".join(
            pack("<HBBI", each.code, self._distance(at, each.true), self._distance(at, each.false), each.value)
            for at, each in enumerate(self.instructions)
        )

    def _distance(self, at: int, label: str) -> int:
        if not label:
            return 0
        distance = self.labels[label] - at - 1
        assert 0 <= distance <= 255, f"{label} is {distance} instructions away"
        return distance


def interpret(program: bytes, number: int, arguments: Sequence[int] = (), arch: int = ARCH_X86_64) -> int:
    """Interpret the program for one system call and return its action. Raises ValueError for a broken program."""
    data = bytearray(DATA_SIZE)
    pack_into("<II", data, 0, number & 0xFFFFFFFF, arch)
    pack_into(f"<{len(arguments)}Q", data, 16, *(each & (1 << 64) - 1 for each in arguments))
    accumulator = at = 0
    while at * 8 < len(program):
        code, true, false, value = unpack_from("<HBBI", program, at * 8)
        at += 1
        match code:
            case 0x20:
                (accumulator,) = unpack_from("<I", data, value)
            case 0x54:
                accumulator &= value
            case 0x06:
                return int(value)
            case 0x15:
                at += true if accumulator == value else false
            case 0x25:
                at += true if accumulator > value else false
            case 0x35:
                at += true if accumulator >= value else false
            case _:
                raise ValueError(f"instruction {at - 1}: unknown code {code:#x}")
    raise ValueError("the program ends without an action")
