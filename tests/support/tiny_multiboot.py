"""Multiboot kernels of some bytes, in 32-bit protected mode: our own, in the manner of kvm-unit-tests' images."""

from __future__ import annotations

import struct

GPA = 0x400000
EXIT_PORT = 0xF4
HEADER = struct.pack("<III", 0x1BADB002, 0, -0x1BADB002 & 0xFFFFFFFF)


def say(text: bytes) -> bytes:
    """Return code that writes `text` to the console."""
    return b"".join(b"\x66\xba\xf8\x03\xb0" + bytes([byte]) + b"\xee" for byte in text)  # mov dx; mov al; out dx, al


def exit_with(value: int) -> bytes:
    """Return code that writes `value` to the exit port, and halts."""
    return b"\xb8" + struct.pack("<I", value) + b"\xe7" + bytes([EXIT_PORT]) + b"\xfa\xf4\xeb\xfc"


def out32(port: int, value: int) -> bytes:
    """Return code that writes 32 bits to a port."""
    return b"\x66\xba" + struct.pack("<H", port) + b"\xb8" + struct.pack("<I", value) + b"\xef"


def elf32(code: bytes, *, gpa: int = GPA, bss: int = 0x1000, header: bytes = HEADER) -> bytes:
    """Return a 32-bit ELF file of one segment: the Multiboot header, then `code`, the entry."""
    body = header + code
    offset = 0x54
    head = b"\x7fELF\x01\x01\x01" + bytes(9)
    head += struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, gpa + len(header), 52, 0, 0, 52, 32, 1, 0, 0, 0)
    head += struct.pack("<IIIIIIII", 1, offset, gpa, gpa, len(body), len(body) + bss, 7, 4)
    return head + body


def flat(code: bytes, *, gpa: int = 0x100000, bss: int = 0x1000) -> bytes:
    """Return a file without ELF headers, whose Multiboot header has the addresses."""
    flags = 1 << 16
    size = 32 + len(code)
    header = struct.pack("<III", 0x1BADB002, flags, -(0x1BADB002 + flags) & 0xFFFFFFFF)
    return header + struct.pack("<IIIII", gpa, gpa, gpa + size, gpa + size + bss, gpa + 32) + code
