"""Kernel modules of a few hundred bytes: an ELF file with a .modinfo section."""

from __future__ import annotations

import struct


def module(name: str, *depends: str, vermagic: str = "") -> bytes:
    info = f"license=GPL\0depends={','.join(depends)}\0name={name}\0".encode()
    info += f"vermagic={vermagic} SMP mod_unload \0".encode() if vermagic else b""
    names = b"\0.modinfo\0.shstrtab\0"
    sections = [(0, b""), (1, info), (10, names)]
    offset = 64 + len(info) + len(names)
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header += struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, offset, 0, 64, 0, 0, 64, len(sections), 2)
    table, at = b"", 64
    for label, data in sections:
        table += struct.pack("<IIQQQQIIQQ", label, 1, 0, 0, at, len(data), 0, 0, 1, 0)
        at += len(data)
    return header + info + names + table
