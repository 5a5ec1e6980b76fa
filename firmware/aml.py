"""ACPI machine language: the bytecode in which the DSDT describes devices. Only what a list of devices needs.

Source: ACPI 6.5, chapter 20 (AML) and 6.4 (resource data types).

Each function returns bytes; nesting calls nests the objects:

    device("COM1", name("_HID", eisa_id("PNP0501")), name("_CRS", resources(io(0x3F8, 8), irq(4))))
"""

from __future__ import annotations

from struct import pack

ZERO, ONE, ONES = b"\x00", b"\x01", b"\xff"


def path(text: str) -> bytes:
    r"""Encode a name: `_CRS`, `\_SB.VMOD`. Segments are padded to four characters."""
    prefix = b"\\" if text.startswith("\\") else b""
    segments = [part.ljust(4, "_").encode("ascii") for part in text.lstrip("\\").split(".")]
    if any(len(segment) != 4 for segment in segments):
        raise AssertionError(f"AML name {text}")
    if len(segments) == 1:
        return prefix + segments[0]
    if len(segments) == 2:
        return prefix + b"\x2e" + b"".join(segments)
    return prefix + b"\x2f" + bytes([len(segments)]) + b"".join(segments)


def sized(body: bytes) -> bytes:
    """Prefix `body` with its PkgLength, which counts itself: 1 byte up to 63, else 2 to 4."""
    if len(body) + 1 <= 0x3F:
        return bytes([len(body) + 1]) + body
    for extra in (1, 2, 3):
        length = len(body) + 1 + extra
        if length < 1 << 4 + 8 * extra:
            return bytes([extra << 6 | length & 0xF]) + (length >> 4).to_bytes(extra, "little") + body
    raise AssertionError(f"AML package of {len(body)} bytes")


def integer(value: int) -> bytes:
    """Encode an integer constant in its shortest form."""
    if value < 2:
        return ONE if value else ZERO
    for prefix, size in ((0x0A, 1), (0x0B, 2), (0x0C, 4), (0x0E, 8)):
        if value < 1 << 8 * size:
            return bytes([prefix]) + value.to_bytes(size, "little")
    raise AssertionError(f"AML integer {value}")


def string(text: str) -> bytes:
    return b"\x0d" + text.encode("ascii") + b"\0"


def buffer(data: bytes) -> bytes:
    return b"\x11" + sized(integer(len(data)) + data)


def package(*items: bytes) -> bytes:
    return b"\x12" + sized(bytes([len(items)]) + b"".join(items))


def name(label: str, value: bytes) -> bytes:
    return b"\x08" + path(label) + value


def scope(label: str, *body: bytes) -> bytes:
    return b"\x10" + sized(path(label) + b"".join(body))


def device(label: str, *body: bytes) -> bytes:
    return b"\x5b\x82" + sized(path(label) + b"".join(body))


def eisa_id(text: str) -> bytes:
    """Encode `PNP0501` as a compressed EISA id of four bytes: three letters of five bits, four hex digits."""
    letters = 0
    for letter in text[:3]:
        letters = letters << 5 | ord(letter) - 0x40
    return b"\x0c" + pack(">HH", letters, int(text[3:], 16))


# Resource descriptors, for `resources`.


def io(port: int, length: int) -> bytes:
    """Describe ports at a fixed address, all 16 bits decoded."""
    return pack("<BBHHBB", 0x47, 1, port, port, 1, length)


def irq(line: int) -> bytes:
    """Describe an ISA interrupt: edge, active high, not shared."""
    return pack("<BH", 0x22, 1 << line)


def memory(gpa: int, size: int) -> bytes:
    """Describe memory at a fixed address (Memory32Fixed), read and write."""
    return pack("<BHBII", 0x86, 9, 1, gpa, size)


def memory_window(gpa: int, size: int) -> bytes:
    """Describe a bus window that its children may use (DWordMemory, producer): uncached, read and write."""
    producer_fixed = 0x0C
    read_write = 0x01
    return pack("<BHBBBIIIII", 0x87, 23, 0, producer_fixed, read_write, 0, gpa, gpa + size - 1, 0, size)


def resources(*descriptors: bytes) -> bytes:
    """Encode the buffer of a _CRS: descriptors and the end tag (whose checksum zero means unchecked)."""
    return buffer(b"".join(descriptors) + b"\x79\0")
