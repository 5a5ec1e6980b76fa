"""Static ELF programs made of a few bytes of machine code, for guests that have no compiler."""

from __future__ import annotations

import struct

_BASE = 0x400000
_HEADERS = 64 + 56  # ELF header, one program header


def static_elf(code: bytes) -> bytes:
    """Return a static ELF program that starts with the first byte of `code`; only its stack is writable."""
    size = _HEADERS + len(code)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",
        2,  # ET_EXEC
        62,  # EM_X86_64
        1,
        _BASE + _HEADERS,  # entry
        64,  # program headers
        0,
        0,
        64,
        56,
        1,
        0,
        0,
        0,
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 4096)  # PT_LOAD, readable and executable
    return header + segment + code
