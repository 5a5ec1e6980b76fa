"""A small assembler for x86-64, for the guest's own little programs: no compiler is needed, and no binary is kept.

    a = Assembler()
    a.label("again")
    a.syscall(Call.READ, "r13", Local(8), 64)     rdi, rsi, rdx; the result is in rax
    a.compare("rax", 0)
    a.jump("again", "g")
    program = static_elf(a.build())

Operands: a register's name; a number; `Local(n)`, the address rbp + n; `Value(n)`, the 64 bits there; `At(name)`, the
address of a label. A system call changes rax, rcx and r11 only.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from struct import pack

REGISTERS = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
ARGUMENTS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
"""Registers of a system call's arguments."""

CONDITIONS = {"e": 0x4, "ne": 0x5, "b": 0x2, "ae": 0x3, "s": 0x8, "ns": 0x9, "l": 0xC, "ge": 0xD, "le": 0xE, "g": 0xF}

_ARITHMETIC = {"add": 0, "or": 1, "and": 4, "sub": 5, "xor": 6, "cmp": 7}


class Call(IntEnum):
    """Numbers of system calls."""

    READ = 0
    WRITE = 1
    OPEN = 2
    CLOSE = 3
    POLL = 7
    SIGACTION = 13
    IOCTL = 16
    DUP2 = 33
    SOCKET = 41
    CONNECT = 42
    SHUTDOWN = 48
    BIND = 49
    LISTEN = 50
    FORK = 57
    EXECVE = 59
    EXIT = 60
    WAIT4 = 61
    KILL = 62
    FCNTL = 72
    SETSID = 112
    MOUNT = 165
    ACCEPT4 = 288
    PIPE2 = 293
    PIDFD_OPEN = 434


@dataclass(frozen=True, slots=True)
class Local:
    """The address rbp + offset."""

    offset: int


@dataclass(frozen=True, slots=True)
class Value:
    """The 64 bits at rbp + offset; `size` 4, 2 or 1: so many bytes, extended by zeros."""

    offset: int
    size: int = 8


@dataclass(frozen=True, slots=True)
class At:
    """The address of a label."""

    label: str


Operand = str | int | Local | Value | At


class Assembler:
    """Collects instructions. All names of registers are of 64 bits."""

    def __init__(self) -> None:
        self._code = bytearray()
        self._labels: dict[str, int] = {}
        self._open: list[tuple[int, str]] = []  # places of 32-bit distances, and their labels

    def label(self, name: str) -> None:
        """Give the next instruction a name."""
        assert name not in self._labels, f"label {name} twice"
        self._labels[name] = len(self._code)

    def offset(self, name: str) -> int:
        """Return the offset of a label in the machine code."""
        return self._labels[name]

    def data(self, name: str, contents: bytes) -> None:
        """Place read-only data."""
        self.label(name)
        self._code += contents

    def build(self) -> bytes:
        """Return the machine code; it runs at any address."""
        code = bytearray(self._code)
        for place, name in self._open:
            code[place : place + 4] = pack("<i", self._labels[name] - place - 4)
        return bytes(code)

    # Moves

    def move(self, register: str, operand: Operand) -> None:
        """Load a register."""
        number = _number(register)
        match operand:
            case str():
                self._registers(0x89, _number(operand), number)
            case Local(offset):
                self._memory(b"\x8d", number, "rbp", offset)
            case Value(offset, size):
                self.load(register, "rbp", offset, size)
            case At(label):
                self._code += bytes([0x48 | (number >> 3) << 2, 0x8D, 0x05 | (number & 7) << 3])
                self._distance(label)
            case int() if 0 <= operand < 1 << 32:
                self._code += (b"\x41" if number >= 8 else b"") + bytes([0xB8 | number & 7]) + pack("<I", operand)
            case _:
                self._code += bytes([0x48 | number >> 3, 0xC7, 0xC0 | number & 7]) + pack("<i", operand)

    def load(self, register: str, base: str, offset: int, size: int = 8) -> None:
        """Load `size` bytes at base + offset, extended by zeros."""
        opcode = {8: b"\x8b", 4: b"\x8b", 2: b"\x0f\xb7", 1: b"\x0f\xb6"}[size]
        self._memory(opcode, _number(register), base, offset, wide=size != 4)

    def store(self, offset: int, operand: str | int, size: int = 8, base: str = "rbp") -> None:
        """Store a register, or a number by way of rax, at base + offset."""
        if isinstance(operand, int):
            self.move("rax", operand)
            operand = "rax"
        if size == 2:
            self._code += b"\x66"
        opcode = b"\x88" if size == 1 else b"\x89"
        self._memory(opcode, _number(operand), base, offset, wide=size == 8)

    def address(self, register: str, base: str, offset: int) -> None:
        """Load base + offset."""
        self._memory(b"\x8d", _number(register), base, offset)

    # Arithmetic

    def add(self, register: str, operand: str | int) -> None:
        self._arithmetic("add", register, operand)

    def subtract(self, register: str, operand: str | int) -> None:
        self._arithmetic("sub", register, operand)

    def both(self, register: str, operand: str | int) -> None:
        """Bitwise and."""
        self._arithmetic("and", register, operand)

    def compare(self, register: str, operand: str | int) -> None:
        """Compare, for `jump`."""
        self._arithmetic("cmp", register, operand)

    def shift_left(self, register: str, bits: int) -> None:
        number = _number(register)
        self._code += bytes([0x48 | number >> 3, 0xC1, 0xE0 | number & 7, bits])

    def negate(self, register: str) -> None:
        number = _number(register)
        self._code += bytes([0x48 | number >> 3, 0xF7, 0xD8 | number & 7])

    # Control

    def jump(self, label: str, condition: str = "") -> None:
        """Jump, if the last comparison says so; signed: l, ge, le, g; s and ns: sign of the last result."""
        self._code += bytes([0x0F, 0x80 | CONDITIONS[condition]]) if condition else b"\xe9"
        self._distance(label)

    def call(self, label: str) -> None:
        self._code += b"\xe8"
        self._distance(label)

    def back(self) -> None:
        """Return from a call."""
        self._code += b"\xc3"

    def syscall(self, number: int, *arguments: Operand) -> None:
        """Make a system call. Arguments are loaded in order: one that is a register must not be loaded before."""
        for register, operand in zip(ARGUMENTS, arguments, strict=False):
            if operand != register:
                self.move(register, operand)
        self.move("rax", number)
        self._code += b"\x0f\x05"

    # Encoding

    def _distance(self, label: str) -> None:
        self._open.append((len(self._code), label))
        self._code += bytes(4)

    def _registers(self, opcode: int, source: int, target: int) -> None:
        self._code += bytes([0x48 | (source >> 3) << 2 | target >> 3, opcode])
        self._code += bytes([0xC0 | (source & 7) << 3 | target & 7])

    def _arithmetic(self, name: str, register: str, operand: str | int) -> None:
        number, kind = _number(register), _ARITHMETIC[name]
        if isinstance(operand, str):
            self._registers(kind << 3 | 1, _number(operand), number)
        else:
            self._code += bytes([0x48 | number >> 3, 0x81, 0xC0 | kind << 3 | number & 7]) + pack("<i", operand)

    def _memory(self, opcode: bytes, register: int, base: str, offset: int, *, wide: bool = True) -> None:
        number = _number(base)
        prefix = 0x40 | wide << 3 | (register >> 3) << 2 | number >> 3
        index = b"\x24" if number & 7 == 4 else b""  # rsp and r12 need a second byte
        self._code += bytes([prefix]) + opcode + bytes([0x80 | (register & 7) << 3 | number & 7]) + index
        self._code += pack("<i", offset)


def _number(register: str) -> int:
    return REGISTERS.index(register)
