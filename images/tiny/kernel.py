"""The tiny guest as a kernel file, which the boot loader enters in 64-bit mode."""

from __future__ import annotations

from pathlib import Path
from struct import pack

from pyvmm.images.tiny.data import CODE, DATA, contents
from pyvmm.images.tiny.program import program

MEMORY = 64 << 20
"""Bytes of RAM that the guest is made for."""


def elf_kernel() -> bytes:
    """Return an ELF file with two segments, the instructions and the data."""
    code, handler = program()
    segments = ((CODE, code), (DATA, contents(CODE + handler)))
    head = pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, CODE, 64, 0, 0, 64, 56, len(segments), 0, 0, 0)
    table, body, at = b"", b"", 4096
    for gpa, part in segments:
        table += pack("<IIQQQQQQ", 1, 7, at, gpa, gpa, len(part), len(part), 4096)
        padded = part.ljust(-(-len(part) // 4096) * 4096, b"\0")
        body += padded
        at += len(padded)
    return (head + table).ljust(4096, b"\0") + body


def write_kernel(path: Path) -> Path:
    """Write the kernel to a file; return its path."""
    path.write_bytes(elf_kernel())
    return path
