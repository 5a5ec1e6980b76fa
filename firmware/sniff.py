"""File type detection, for the error message about a file that is not a kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyvmm.wire import Buffer

MAGICS = [
    (b"\x1f\x8b", "a gzip file (unpack it first)"),
    (b"\xfd7zXZ\0", "an xz file (unpack it first)"),
    (b"\x28\xb5\x2f\xfd", "a zstd file (unpack it first)"),
    (b"BZh", "a bzip2 file (unpack it first)"),
    (b"070701", "an initramfs (cpio archive)"),
    (b"070702", "an initramfs (cpio archive)"),
    (b"!<arch>\n", "a Debian package or library"),
    (b"QFI\xfb", "a QCOW2 disk image"),
    (b"\x27\x05\x19\x56", "a U-Boot image"),
    (b"#!", "a script"),
    (b"PK\x03\x04", "a zip file"),
    (b"\x7fELF", "an ELF file"),
    (b"MZ", "an EFI or Windows program"),
]


def describe(data: Buffer) -> str:
    """Return "a gzip file", "a text file", ... by the first bytes."""
    start = bytes(memoryview(data)[:512])
    for magic, words in MAGICS:
        if start.startswith(magic):
            return words
    if start[510:512] == b"\x55\xaa":
        return "a disk or boot sector image"
    if start and all(byte in b"\t\n\r\f" or 32 <= byte < 127 for byte in start):
        return "a text file"
    return f"a file that starts with {start[:8].hex(' ')}"
