"""Small files that look like kernels, for loaders."""

from __future__ import annotations

import struct


def elf(
    segments: list[tuple[int, bytes, int]],
    *,
    entry: int,
    notes: bytes = b"",
    machine: int = 62,
    klass: int = 2,
) -> bytes:
    """An ELF executable: segments of (physical address, contents, size in memory), linked high."""
    count = len(segments) + bool(notes)
    offset = 64 + 56 * count
    ident = b"\x7fELF" + bytes([klass, 1, 1]) + bytes(9)
    header = ident + struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, entry, 64, 0, 0, 64, 56, count, 64, 0, 0)
    table, body = b"", b""
    for gpa, data, size in segments:
        virtual = 0xFFFFFFFF80000000 + gpa
        table += struct.pack("<IIQQQQQQ", 1, 7, offset + len(body), virtual, gpa, len(data), size, 4096)
        body += data
    if notes:
        table += struct.pack("<IIQQQQQQ", 4, 4, offset + len(body), 0, 0, len(notes), len(notes), 4)
        body += notes
    return header + table + body


def note(owner: bytes, kind: int, data: bytes) -> bytes:
    def padded(text: bytes) -> bytes:
        return text + bytes(-len(text) % 4)

    return struct.pack("<III", len(owner), len(data), kind) + padded(owner) + padded(data)


def vmlinux(*, pvh: bool = True) -> bytes:
    """A kernel at 16 MiB: 8 KiB of text, and data followed by zeros."""
    notes = note(b"GNU\0", 3, b"build") + note(b"Xen\0", 18, struct.pack("<Q", 0x1000040)) if pvh else b""
    text = b"\x90" * 0x2000
    return elf([(0x1000000, text, 0x2000), (0x1200000, b"data" + bytes(4092), 0x3000)], entry=0x1000000, notes=notes)


def bzimage(payload: bytes, *, sectors: int = 1, version: int = 0x20F, xloadflags: int = 0x7F) -> bytes:
    """A packed kernel whose unpacker is 1 KiB of nothing."""
    kernel = bytes(1024) + payload
    kernel += bytes(-len(kernel) % 16)
    release = b"6.1.0-test (someone@somewhere) #1 SMP\0"
    head = bytearray((sectors + 1) * 512)
    head[0x1F1] = sectors
    struct.pack_into("<I", head, 0x1F4, len(kernel) // 16)
    struct.pack_into("<H", head, 0x1FE, 0xAA55)
    head[0x200:0x202] = b"\xeb\x6a"
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x206, version)
    struct.pack_into("<H", head, 0x20E, 0x100)
    head[0x300 : 0x300 + len(release)] = release
    struct.pack_into("<I", head, 0x22C, 0x7FFFFFFF)
    struct.pack_into("<HI", head, 0x236, xloadflags, 2047)
    struct.pack_into("<II", head, 0x248, 1024, len(payload))
    struct.pack_into("<QI", head, 0x258, 0x1000000, 0x200000)
    return bytes(head) + kernel
