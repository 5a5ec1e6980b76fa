"""A vmlinux of some bytes, for a whole machine on any /dev/kvm: it says a line on the console and waits for ever."""

from __future__ import annotations

import struct

GPA = 0x1000000
TEXT = b"tiny kernel up\n"


def vmlinux(then: bytes = b"\xfa\xf4\xeb\xfc") -> bytes:
    """An ELF file entered in 64-bit mode. `then` is what it goes on with: cli; hlt; over and over."""
    code = bytearray()
    for byte in TEXT:
        code += b"\x66\xba\xf8\x03" + b"\xb0" + bytes([byte]) + b"\xee"  # mov dx, 0x3f8; mov al, byte; out dx, al
    code += then
    offset = 0x1000
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, GPA, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    header += struct.pack("<IIQQQQQQ", 1, 7, offset, GPA, GPA, len(code), len(code), 0x1000)
    return header.ljust(offset, b"\0") + bytes(code)
