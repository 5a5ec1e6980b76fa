"""The assembler for guests without an operating system: the instructions of kernels, in 64-bit mode.

    a = KernelAssembler()
    a.write_msr(Msr.GUEST_OS_ID, 0x8100000000000000)
    a.move("rax", 33)
    a.out(0x3F8)
    a.halt()

As in `Assembler`; the methods here change rax, rcx and rdx where their instructions do.
"""

from __future__ import annotations

from struct import pack

from pyvmm.images.assembler import REGISTERS, Assembler, Operand

_OUT, _IN = (0xE6, 0xEE), (0xE4, 0xEC)  # with the port in the instruction, with the port in dx


class KernelAssembler(Assembler):
    """Collects instructions."""

    def move(self, register: str, operand: Operand) -> None:
        """Load a register, also with a number of 64 bits."""
        if isinstance(operand, int) and not -(1 << 31) <= operand < 1 << 32:
            number = REGISTERS.index(register)
            self._code += bytes([0x48 | number >> 3, 0xB8 | number & 7]) + pack("<Q", operand & (1 << 64) - 1)
        else:
            super().move(register, operand)

    def shift_right(self, register: str, bits: int) -> None:
        number = REGISTERS.index(register)
        self._code += bytes([0x48 | number >> 3, 0xC1, 0xE8 | number & 7, bits])

    def either(self, register: str, operand: str | int) -> None:
        """Bitwise or."""
        self._arithmetic("or", register, operand)

    def copy_bytes(self) -> None:
        """Copy rcx bytes from rsi to rdi; both end behind them, rcx at 0."""
        self._code += b"\xf3\xa4"

    def out(self, port: int, size: int = 1) -> None:
        """Write the low `size` bytes (1, 2 or 4) of rax to a port. Changes rdx for a port above 255."""
        self._port(_OUT, port, size)

    def read_port(self, port: int, size: int = 1) -> None:
        """Read `size` bytes (1, 2 or 4) from a port into the low part of rax. Changes rdx for a port above 255."""
        self._port(_IN, port, size)

    def cpuid(self, leaf: int) -> None:
        """Read a CPUID leaf into rax, rbx, rcx and rdx."""
        self.move("rax", leaf)
        self.move("rcx", 0)
        self._code += b"\x0f\xa2"

    def read_msr(self, msr: int) -> None:
        """Read an MSR into rax. Changes rcx and rdx."""
        self.move("rcx", msr)
        self._code += b"\x0f\x32"
        self.shift_left("rdx", 32)
        self.either("rax", "rdx")

    def write_msr(self, msr: int, value: int) -> None:
        """Write a number to an MSR. Changes rax, rcx and rdx."""
        self.move("rcx", msr)
        self.move("rax", value & 0xFFFFFFFF)
        self.move("rdx", value >> 32)
        self._code += b"\x0f\x30"

    def call_address(self, register: str) -> None:
        """Call the address in a register."""
        number = REGISTERS.index(register)
        self._code += (b"\x41" if number >= 8 else b"") + bytes([0xFF, 0xD0 | number & 7])

    def barrier(self) -> None:
        """A full memory barrier, mfence."""
        self._code += b"\x0f\xae\xf0"

    def align(self, size: int) -> None:
        """Go on at a multiple of `size` bytes from the begin of the code."""
        self._code += b"\xcc" * (-len(self._code) % size)

    def halt(self) -> None:
        self._code += b"\xf4"

    def _port(self, opcodes: tuple[int, int], port: int, size: int) -> None:
        prefix, wide = b"\x66" * (size == 2), int(size != 1)
        if port < 0x100:
            self._code += prefix + bytes([opcodes[0] | wide, port])
        else:
            self.move("rdx", port)
            self._code += prefix + bytes([opcodes[1] | wide])
