"""The Internet checksum.

Source: RFC 1071. The ones' complement sum of 16-bit words is the number that the bytes form, modulo 65535, which
Python takes of a long integer at once.
"""

from __future__ import annotations

from struct import pack_into

from pyvmm.errors import WireError
from pyvmm.wire import Buffer


def fold(total: int) -> int:
    """Return the 16-bit ones' complement sum; 0 for no bits at all."""
    return (total - 1) % 0xFFFF + 1 if total else 0


def checksum(data: Buffer) -> int:
    """Return the complement of the sum of `data`, an odd end padded by a zero."""
    number = int.from_bytes(data, "big")
    return ~fold(number << 8 if len(data) & 1 else number) & 0xFFFF


def complete_checksum(frame: bytearray | memoryview, start: int, field: int) -> None:
    """Finish in place the checksum of what begins at `start`; it lies `field` bytes after and holds the pseudo
    header's sum. Raises WireError if it is outside the frame.
    """
    if start + field + 2 > len(frame):
        raise WireError(f"checksum at {start} + {field} of a frame of {len(frame)} bytes")
    pack_into(">H", frame, start + field, checksum(frame[start:]) or 0xFFFF)
