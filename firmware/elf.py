"""The unpacked kernel, vmlinux: an ELF file with the segments to load and two entry points.

Source: ELF-64 object file format; Linux arch/x86/kernel/vmlinux.lds.S; Xen public/elfnote.h (PHYS32_ENTRY).

Read with a few `struct` calls: importing pyelftools would cost 0.1 s of every start (measured).
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import pack_into, unpack_from
from typing import TYPE_CHECKING, NamedTuple

from pyvmm.errors import ConfigError

if TYPE_CHECKING:
    from pyvmm.files import FileBytes
    from pyvmm.wire import Buffer

ELF_MAGIC = b"\x7fELF"
CLASS_64 = 2
LITTLE_ENDIAN = 1
EM_X86_64 = 62
PT_LOAD = 1
PT_NOTE = 4
HEADER_SIZE = 64
PROGRAM_HEADER_SIZE = 56
FILE_SIZE = 32  # p_filesz, in a program header
MAX_PROGRAM_HEADERS = 64  # Linux has 5
MAX_NOTE_BYTES = 1 << 20
XEN_PHYS32_ENTRY = 18  # XEN_ELFNOTE_PHYS32_ENTRY: where PVH starts, a physical address


class Segment(NamedTuple):
    """PT_LOAD: `file_size` bytes from `offset` in the file go to `gpa`; zeros follow up to `size`."""

    gpa: int
    offset: int
    file_size: int
    size: int


@dataclass(slots=True)
class Vmlinux:
    """The parts of a vmlinux that a boot loader needs."""

    entry64: int  # startup_64, physical
    pvh_entry: int | None
    segments: list[Segment]

    @property
    def end(self) -> int:
        """Return the first address after the kernel and its zeroed data."""
        return max(segment.gpa + segment.size for segment in self.segments)


def parse(data: Buffer | FileBytes, name: str = "kernel") -> Vmlinux:
    """Read and check the headers. Raises ConfigError if it is no 64-bit x86 kernel, or is truncated."""
    whole = len(data)
    view = bytes(data[:HEADER_SIZE])
    if len(view) < HEADER_SIZE or bytes(view[:4]) != ELF_MAGIC:
        raise ConfigError(f"{name}: not an ELF kernel")
    if view[4] != CLASS_64 or view[5] != LITTLE_ENDIAN or unpack_from("<H", view, 18)[0] != EM_X86_64:
        raise ConfigError(f"{name}: an ELF file, but not for x86-64; pyvmm runs 64-bit x86 kernels only")
    entry, table = unpack_from("<QQ", view, 24)
    entry_size, count = unpack_from("<HH", view, 54)
    if entry_size != PROGRAM_HEADER_SIZE or not 0 < count <= MAX_PROGRAM_HEADERS:
        raise ConfigError(f"{name}: an ELF file with {count} program headers is not a kernel (an object file?)")
    if table + count * PROGRAM_HEADER_SIZE > whole:
        raise ConfigError(f"{name}: truncated: its program headers lie past the end; copy it again")

    headers = bytes(data[table : table + count * PROGRAM_HEADER_SIZE])
    segments: list[Segment] = []
    pvh_entry = None
    virtual = {}
    for index in range(count):
        kind, _flags, offset, vaddr, paddr, file_size, size, _align = unpack_from(
            "<IIQQQQQQ", headers, index * PROGRAM_HEADER_SIZE
        )
        if kind not in (PT_LOAD, PT_NOTE):
            continue
        if offset + file_size > whole:
            raise ConfigError(
                f"{name}: truncated: {whole} bytes, {offset + file_size} needed; copy or build it again"
            )
        if kind == PT_NOTE:
            pvh_entry = pvh_entry or _pvh_entry(bytes(data[offset : offset + min(file_size, MAX_NOTE_BYTES)]))
        elif size:
            if file_size > size or paddr + size > 1 << 52:
                raise ConfigError(f"{name}: damaged ELF file: a segment of {size} bytes at {paddr:#x}")
            segments.append(Segment(paddr, offset, file_size, size))
            virtual[vaddr] = segments[-1]
    if not segments:
        raise ConfigError(f"{name}: an ELF file with nothing to load is not a kernel")
    for vaddr, segment in virtual.items():
        if vaddr <= entry < vaddr + segment.size and vaddr != segment.gpa:
            entry += segment.gpa - vaddr  # linked with a virtual entry point
            break
    for address in (entry, pvh_entry):
        if address is not None and not any(s.gpa <= address < s.gpa + s.file_size for s in segments):
            raise ConfigError(f"{name}: its entry point {address:#x} lies in none of its segments: not a kernel")
    return Vmlinux(entry, pvh_entry, segments)


def trim_zeros(data: bytearray, name: str = "kernel") -> None:
    """Exclude trailing zeros from the segments' file sizes: fresh memory needs no copy of them."""
    image = parse(data, name)
    (table,) = unpack_from("<Q", data, 32)
    wanted = {(segment.gpa, segment.offset): segment for segment in image.segments}
    (count,) = unpack_from("<H", data, 56)
    for index in range(count):
        at = table + index * PROGRAM_HEADER_SIZE
        kind, _flags, offset, _vaddr, paddr = unpack_from("<IIQQQ", data, at)
        segment = wanted.get((paddr, offset))
        if kind == PT_LOAD and segment is not None:
            used = len(data[offset : offset + segment.file_size].rstrip(b"\0"))
            pack_into("<Q", data, at + FILE_SIZE, used)


def _pvh_entry(notes: bytes) -> int | None:
    """Return the address in Xen's PHYS32_ENTRY note, 32 or 64 bits wide; None if there is no such note."""
    at = 0
    while at + 12 <= len(notes):
        name_size, size, kind = unpack_from("<III", notes, at)
        start = at + 12 + (name_size + 3 & ~3)
        at = start + (size + 3 & ~3)
        if at > len(notes):
            return None
        if kind == XEN_PHYS32_ENTRY and bytes(notes[start - 4 : start]) == b"Xen\0" and size in (4, 8):
            return int.from_bytes(notes[start : start + size], "little")
    return None
