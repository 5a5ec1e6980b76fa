"""The Multiboot protocol, version 1: its header in a kernel's first bytes, and the information left in memory for it.

Source: Multiboot Specification 0.6.96, sections 3.1 (header), 3.2 (machine state) and 3.3 (boot information).

kvm-unit-tests, xv6 and other small kernels use it. The header has no fixed place: it is aligned to four bytes within
the first 8 KiB of the file. An ELF file is loaded by its program headers, 32 or 64 bits wide; other formats carry
their addresses in the header (ADDRESSES). Either is entered in 32-bit protected mode.

    EAX 0x2BADB002    EBX -> information -> command line, modules (the files of --initrd), memory map
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from struct import Struct, unpack_from
from typing import TYPE_CHECKING

from pyvmm.address_map import EXTENDED_RAM, LOW_RAM
from pyvmm.errors import ConfigError
from pyvmm.firmware import elf
from pyvmm.firmware.e820 import E820Entry, E820Type
from pyvmm.firmware.elf import Segment

if TYPE_CHECKING:
    from pyvmm.files import FileBytes
    from pyvmm.wire import Buffer

HEADER_MAGIC = 0x1BADB002
LOADER_MAGIC = 0x2BADB002
"""EAX at the entry: a Multiboot loader has loaded the kernel."""

SEARCHED = 8192
MODULES_ALIGNED, NEEDS_MEMORY = 1 << 0, 1 << 1
REQUIREMENTS = 0xFFFF  # flags that a loader must understand
ADDRESSES = 1 << 16

HAS_MEMORY, HAS_CMDLINE, HAS_MODULES, HAS_MAP, HAS_LOADER_NAME = 1 << 0, 1 << 2, 1 << 3, 1 << 6, 1 << 9
INFORMATION = Struct("<IIIIIII16xIIIIII48x")
MODULE = Struct("<IIII")  # start, end, string, reserved
MAP_ENTRY = Struct("<IQQI")  # size of what follows, start, length, type
LOADER_NAME = b"pyvmm\0"
_NO_BOOT_DEVICE = 0xFFFFFFFF

_CLASS_32 = 1
_EM_386 = 3
_HEADER_32 = 52
_PROGRAM_HEADER_32 = Struct("<IIIIIIII")  # type, offset, vaddr, paddr, file size, size, flags, alignment


@dataclass(frozen=True, slots=True)
class Image:
    """The parts of a Multiboot kernel that a boot loader needs."""

    entry: int
    segments: list[Segment]

    @property
    def end(self) -> int:
        """Return the first address after the kernel and its zeroed data."""
        return max(segment.gpa + segment.size for segment in self.segments)


@dataclass(frozen=True, slots=True)
class Module:
    """A file for a Multiboot kernel, and the string that goes with it: its name and arguments."""

    source: Path | bytes
    string: str


def find_header(data: Buffer | FileBytes) -> int | None:
    """Return the offset of the file's Multiboot header, None if it has none."""
    head = bytes(data[:SEARCHED])
    for at in range(0, len(head) - 11, 4):
        magic, flags, checksum = unpack_from("<III", head, at)
        if magic == HEADER_MAGIC and (magic + flags + checksum) & 0xFFFFFFFF == 0:
            return at
    return None


def parse(data: Buffer | FileBytes, name: str = "kernel") -> Image:
    """Read and check the headers. Raises ConfigError if the kernel is damaged or needs what pyvmm does not have."""
    at = find_header(data)
    if at is None:
        raise ConfigError(f"{name}: no Multiboot header in its first {SEARCHED} bytes")
    head = bytes(data[: at + 32])
    (flags,) = unpack_from("<I", head, at + 4)
    unknown = flags & REQUIREMENTS & ~(MODULES_ALIGNED | NEEDS_MEMORY)
    if unknown:
        raise ConfigError(
            f"{name}: its Multiboot header wants {unknown:#x} (4: a video mode), which pyvmm does not have"
        )
    if flags & ADDRESSES:
        image = _by_addresses(head, at, len(data), name)
    elif head[:4] != elf.ELF_MAGIC:
        raise ConfigError(f"{name}: a Multiboot kernel that is neither ELF nor gives addresses in its header")
    elif len(head) > 4 and head[4] == elf.CLASS_64:
        found = elf.parse(data, name)
        image = Image(found.entry64, found.segments)
    else:
        image = _parse_elf32(data, name)
    if image.end > 1 << 32:
        raise ConfigError(f"{name}: its end {image.end:#x} is beyond 4 GiB, where its 32-bit entry reaches nothing")
    return image


def _by_addresses(head: bytes, at: int, whole: int, name: str) -> Image:
    """Return the image that the address fields of the header at offset `at` describe."""
    if len(head) < at + 32:
        raise ConfigError(f"{name}: truncated in its Multiboot header; copy it again")
    header_gpa, load, load_end, bss_end, entry = unpack_from("<IIIII", head, at + 12)
    offset = at - (header_gpa - load)
    if header_gpa < load or offset < 0:
        raise ConfigError(f"{name}: its Multiboot header loads it at {load:#x}, which starts before the file does")
    file_size = (load_end or load + whole - offset) - load
    if file_size <= 0 or offset + file_size > whole:
        raise ConfigError(f"{name}: truncated: its Multiboot header loads {file_size} of {whole - offset} bytes")
    size = max(file_size, bss_end - load)
    if not load <= entry < load + file_size:
        raise ConfigError(f"{name}: its entry point {entry:#x} lies outside of what is loaded")
    return Image(entry, [Segment(load, offset, file_size, size)])


def _parse_elf32(data: Buffer | FileBytes, name: str) -> Image:
    """Return the image of a 32-bit ELF file, loaded at its physical addresses."""
    whole = len(data)
    view = bytes(data[:_HEADER_32])
    if len(view) < _HEADER_32 or view[4] != _CLASS_32 or view[5] != elf.LITTLE_ENDIAN:
        raise ConfigError(f"{name}: a Multiboot kernel in an ELF file that is not for x86")
    if unpack_from("<H", view, 18)[0] != _EM_386:
        raise ConfigError(f"{name}: a Multiboot kernel in an ELF file that is not for x86")
    entry, table = unpack_from("<II", view, 24)
    entry_size, count = unpack_from("<HH", view, 42)
    if entry_size != _PROGRAM_HEADER_32.size or not 0 < count <= elf.MAX_PROGRAM_HEADERS:
        raise ConfigError(f"{name}: an ELF file with {count} program headers is not a kernel (an object file?)")
    if table + count * entry_size > whole:
        raise ConfigError(f"{name}: truncated: its program headers lie past the end; copy it again")
    segments = []
    for fields in _PROGRAM_HEADER_32.iter_unpack(bytes(data[table : table + count * entry_size])):
        kind, offset, vaddr, gpa, file_size, size, _flags, _align = fields
        if kind != elf.PT_LOAD or not size:
            continue
        if offset + file_size > whole:
            raise ConfigError(
                f"{name}: truncated: {whole} bytes, {offset + file_size} needed; copy or build it again"
            )
        if file_size > size:
            raise ConfigError(f"{name}: damaged ELF file: a segment of {size} bytes at {gpa:#x}")
        segments.append(Segment(gpa, offset, file_size, size))
        if vaddr <= entry < vaddr + size and vaddr != gpa:
            entry, vaddr = entry - vaddr + gpa, gpa  # linked with a virtual entry point
    if not segments:
        raise ConfigError(f"{name}: an ELF file with nothing to load is not a kernel")
    if not any(each.gpa <= entry < each.gpa + each.file_size for each in segments):
        raise ConfigError(f"{name}: its entry point {entry:#x} lies in none of its segments: not a kernel")
    return Image(entry, segments)


def build(
    gpa: int,
    *,
    e820: Sequence[E820Entry],
    cmdline_gpa: int,
    modules: Sequence[tuple[int, int, str]] = (),
) -> bytes:
    """Build the boot information, to be written at `gpa`. `modules`: address, size and string of each."""
    table = b""
    strings_gpa = gpa + INFORMATION.size + MAP_ENTRY.size * len(e820) + MODULE.size * len(modules)
    strings = LOADER_NAME
    for start, size, string in modules:
        table += MODULE.pack(start, start + size, strings_gpa + len(strings), 0)
        strings += string.encode("utf-8", "surrogateescape") + b"\0"
    memory_map = b"".join(MAP_ENTRY.pack(MAP_ENTRY.size - 4, *entry) for entry in e820)
    map_gpa = gpa + INFORMATION.size
    upper = next((e.size for e in e820 if e.gpa == EXTENDED_RAM.start and e.type == E820Type.RAM), 0)
    information = INFORMATION.pack(
        HAS_MEMORY | HAS_CMDLINE | HAS_MODULES | HAS_MAP | HAS_LOADER_NAME,
        min(LOW_RAM.size, e820[0].size) >> 10,
        upper >> 10,
        _NO_BOOT_DEVICE,
        cmdline_gpa,
        len(modules),
        map_gpa + len(memory_map) if modules else 0,
        len(memory_map),
        map_gpa,
        0,  # drives: length, address
        0,
        0,  # configuration table
        strings_gpa,
    )
    return information + memory_map + table + strings
